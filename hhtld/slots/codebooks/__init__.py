"""The levels of Slot T's states, trained for every rate, and the program that trains them."""
