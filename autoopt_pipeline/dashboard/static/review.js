// Keys for the questions. The page works without them; they only press what can be seen.
"use strict";
{
  const main = document.getElementById("main");
  const question = document.getElementById("question");
  let sent = false; // a second key, pressed before the next question is there, is not meant for this one

  const press = (element) => {
    element.focus();
    if (element.matches("input[type=radio]")) element.checked = true;
    else if (element.matches("button, a")) element.click();
  };

  const typing = (element) => element.matches("input:not([type=radio]), textarea, select");

  document.documentElement.classList.add("keys");
  main.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
  });
  // Only inside the page's main part, where the focus is after loading, so that no key surprises elsewhere.
  main.addEventListener("keydown", (event) => {
    if (sent || event.repeat || event.ctrlKey || event.altKey || event.metaKey || typing(event.target)) return;
    const key = event.key.toLowerCase();
    const element = key === "u" ? document.getElementById("undo")
      : [...main.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
    if (!element) return;
    event.preventDefault();
    press(element);
  });
  const first = question?.querySelector("[autofocus]") ?? question;
  first?.focus({ preventScroll: first === question });
}
