"""How the page looks where Gradio draws it: system fonts, greys with contrast, the dark of base.css."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    """System fonts, so that nothing is fetched; greys that pass contrast checks."""
    grey = "*neutral_600"
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.gray,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        body_text_color_subdued=grey,
        block_info_text_color=grey,
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        body_background_fill_dark="#0f1114",
        background_fill_primary_dark="#0f1114",
        background_fill_secondary_dark="#181b20",
        block_background_fill_dark="#181b20",
        block_border_color_dark="#343a43",
        border_color_primary_dark="#343a43",
        input_background_fill_dark="#22262d",
        button_secondary_background_fill_dark="#2c313a",
        button_secondary_background_fill_hover_dark="#383e49",
    )
