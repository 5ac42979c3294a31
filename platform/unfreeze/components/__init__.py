"""Which parameters belong to which component, and how a selection of them is written."""
