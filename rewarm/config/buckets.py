"""The schemes of object stores that a run folder or a dataset may be in."""

SCHEMES = ('s3', 'gs', 'az')
"""S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage."""
