"""Errors of the editors: each names the editor, request or tensor, what was found and what to do."""


class EditorError(Exception):
    """Root of every error raised below `editors`."""


class UnknownEditor(EditorError):
    """No editor of that name; the message offers the nearest names."""


class RefusedEditor(EditorError):
    """An editor of another package that the catalogue cannot take: its name is taken, or it is no `Editor`."""


class UnsupportedModel(EditorError):
    """The model's architecture has no anatomy table, or the editor has no preset for it."""


class NoPreset(UnsupportedModel):
    """Nobody has numbers of the editor for this model; a search on it may find them."""


class UnsupportedMode(EditorError):
    """The editor's card does not grant the mode or the batch size that was asked for."""


class InvalidRequest(EditorError):
    """A request that no editor can apply: its subject is not in its prompt, or its target is empty."""


class PatchError(EditorError):
    """A patch file is damaged, of an unknown kind, or made for another model."""


class NotWritten(EditorError):
    """A file could not be written: the disk is full, or the folder may not be written to."""


class EditRefused(EditorError):
    """A guard stopped an update that would have destroyed the model; the model is unchanged."""
