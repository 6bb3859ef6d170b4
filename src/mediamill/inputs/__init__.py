"""URLs, uploads and base64 of callers become local files, safely, in a content-addressed cache."""
