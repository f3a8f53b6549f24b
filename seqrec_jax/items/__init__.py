"""What a model reads of an item: its text, a row of its own, fixed vectors of its words."""
