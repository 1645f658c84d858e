"""The page: prompt in, two panes racing, and the joint distribution behind every chunk.

Nothing else in the project imports this package, and only this package and `app.py` import gradio.
"""

from dynamo.ui.analyses import Analyses, ModelOffer, Offer
from dynamo.ui.contenders import Contenders
from dynamo.ui.layout import build_demo, launch_options, serve
from dynamo.ui.lending import quota

__all__ = ["Analyses", "Contenders", "ModelOffer", "Offer", "build_demo", "launch_options", "quota", "serve"]
