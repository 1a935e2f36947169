"""Pages that sinklens writes, in headless Chromium."""
