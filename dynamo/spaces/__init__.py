"""The Hugging Face Space: its configuration, card, files and deployment."""

from dynamo.spaces.app import AppConfig, read_config
from dynamo.spaces.deployment import Deployment, deploy
from dynamo.spaces.files import render_card, space_files
from dynamo.spaces.project import SpaceProject

__all__ = ["AppConfig", "Deployment", "SpaceProject", "deploy", "read_config", "render_card", "space_files"]
