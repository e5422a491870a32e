"""What people are told of by themselves: which events are worth it, in which form, and how they get there."""
