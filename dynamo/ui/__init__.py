"""The page: prompt in, two panes racing, and the joint distribution behind every chunk.

Only `app.py` imports this package, and only this package and `app.py` import gradio.
"""

from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.layout import build_demo, launch_options, serve
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.server.engines import quota

__all__ = ["ModelManager", "ModelPair", "build_demo", "launch_options", "quota", "serve"]
