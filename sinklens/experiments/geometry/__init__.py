"""Reference frames: the anchors that attention spans."""
