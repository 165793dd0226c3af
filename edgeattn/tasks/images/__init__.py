"""Images, clips and masks: from a file to the input of a model and back, the same numpy code here and on a device.

    file --reading, clips--> uint8 RGB --preprocess (resize, crop, pad, normalize)--> input of the model
    result in pixels of the input --placement, masks--> pixels of the file

:class:`~edgeattn.tasks.images.settings.ImageSettings` says how; a bundle's manifest records it. Only reading files
needs Pillow (``edgeattn[vision]``).
"""

__all__ = [
    "clips",
    "masks",
    "placement",
    "preprocess",
    "processor",
    "reading",
    "resize",
    "settings",
]
