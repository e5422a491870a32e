"""Whether everything that the system needs is there and works, and how to mend what does not."""
