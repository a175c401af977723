"""Object stores: one narrow interface over S3, Google Cloud Storage and Azure Blob Storage."""
