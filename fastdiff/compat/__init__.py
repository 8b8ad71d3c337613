"""Drop-in faces of other libraries over fastdiff's own parts."""
