// A click copies a command. Where this does not run, or a browser forbids it, the command is text like any other.
"use strict";
if (navigator.clipboard) document.documentElement.classList.add("copies");
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copies]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copies);
  button.textContent = "Copied";
});
