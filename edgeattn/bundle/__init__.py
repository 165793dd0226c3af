"""The bundle: one model for one target, whole and verified, as a directory or a zip of it.

docs/bundle.md states the format field by field. What these modules hold to: nothing is loaded before every byte is
checked against the manifest; no pickle; no path outside the bundle; bounded sizes; a bundle is whole or absent.
"""

from edgeattn.bundle.draft import BundleDraft, zip_bundle
from edgeattn.bundle.golden import GoldenArray, read_golden
from edgeattn.bundle.manifest import ASSETS, FORMAT_VERSION, MANIFEST, SUFFIX, FileEntry, Golden, Manifest
from edgeattn.bundle.reading import Bundle, names_bundle, open_bundle, read_manifest

__all__ = [
    "ASSETS",
    "FORMAT_VERSION",
    "MANIFEST",
    "SUFFIX",
    "Bundle",
    "BundleDraft",
    "FileEntry",
    "Golden",
    "GoldenArray",
    "Manifest",
    "names_bundle",
    "open_bundle",
    "read_golden",
    "read_manifest",
    "zip_bundle",
]
