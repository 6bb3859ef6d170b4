"""User URLs, uploads and base64 become local files, safely, through a content-addressed cache."""

from mediamill.inputs.guard import UrlGuard
from mediamill.inputs.references import check_literal, check_url
from mediamill.inputs.resolver import Inputs

__all__ = ["Inputs", "UrlGuard", "check_literal", "check_url"]
