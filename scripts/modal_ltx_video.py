"""The path that the text-to-video document deploys: `modal deploy scripts/modal_ltx_video.py`."""

from mediamill.serverless.modal_app import app, batch_generate, download_weights, generate_video_endpoint

__all__ = ["app", "batch_generate", "download_weights", "generate_video_endpoint"]
