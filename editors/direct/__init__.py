"""Locate and edit: closed-form updates of feed-forward weights at the subject's last token."""
