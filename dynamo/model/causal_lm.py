"""DynaMo's model: a causal LM with extra token heads (paper, sections 3.1 and 3.2).

The *stem* is the embedding and all decoder layers but the last. The last layer, the final norm and the output
embedding are the first-token head, so a DynaMo model read through its first head is a stock model of its
family (`dynamo.model.architectures`); it is held here as one, `backbone`. Every further head has decoder
layers of its own, takes the stem's output, shares the norm and the output embedding, and predicts the token
at its own distance.

Nothing here samples: decoding is `dynamo.decoding.engine`'s.
"""

from __future__ import annotations

import copy
import os
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from dynamo.model import heads_file
from dynamo.model.adapters import UntiedByAdapters
from dynamo.model.architectures import ARCHITECTURES, architecture_of
from dynamo.model.capture import Capture
from dynamo.model.checkpoints import load_base, load_filled
from dynamo.model.config import DynamoConfig
from dynamo.model.correlator import Correlator
from dynamo.model.forward_arguments import check_arguments
from dynamo.model.head_outputs import HeadOutputs
from dynamo.model.heads import DynamoOutput, TokenHead, walk_heads
from dynamo.model.optimiser import parameter_groups, scale_gradient, scaled_call


class DynamoForCausalLM(UntiedByAdapters, HeadOutputs, PreTrainedModel, GenerationMixin):
    """A base with `config.num_token_heads` token heads. `generate` and caches run the first head only."""

    config_class = DynamoConfig
    config: DynamoConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = [each.layer_class.__name__ for each in ARCHITECTURES]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: DynamoConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        architecture = architecture_of(config)
        # The one family's alone: FSDP looks for every name in this list.
        self._no_split_modules = [architecture.layer_class.__name__]
        self.backbone = architecture.model_class(config.text_config) if backbone is None else backbone
        tied = self.backbone._tied_weights_keys or {}
        self._tied_weights_keys = {f"backbone.{name}": f"backbone.{source}" for name, source in tied.items()}
        self.token_heads = nn.ModuleList(TokenHead(config, i) for i in range(1, config.num_token_heads))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Correlator):
            init.zeros_(module.to_hidden)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """The base's, as transformers does it, and with it the output embeddings that heads have."""
        embeddings = self.backbone.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for head in self.token_heads:
            if head.output_embedding is not None:
                trained = head.output_embedding.weight.requires_grad
                head.output_embedding = self._get_resized_lm_head(
                    head.output_embedding, len(embeddings.weight), mean_resizing=mean_resizing
                ).requires_grad_(trained)
        order, new = self.tokens_by_frequency, len(embeddings.weight)
        if order is not None:
            added = torch.arange(new, dtype=order.dtype, device=order.device)[len(order) :]
            self.token_heads[0].tokens_by_frequency = torch.cat([order[order < new], added])
        return embeddings

    @property
    def tokens_by_frequency(self) -> Tensor | None:
        """The vocabulary's ids (vocab,), as `count_tokens` listed them."""
        return self.token_heads[0].tokens_by_frequency if len(self.token_heads) else None

    def count_tokens(self, tokens: Tensor) -> None:
        """List the vocabulary by how often each is among `tokens` (any shape), the most frequent first and on
        ties the lower id. Exact mode can draft from the list's beginning (`SamplingOptions.exact_vocabulary`,
        as FR-Spec does, arXiv 2502.14856)."""
        counts = torch.bincount(tokens.flatten().cpu(), minlength=self.config.vocab_size)
        order = counts.argsort(descending=True, stable=True)
        self.config.tokens_by_frequency = True
        self.token_heads[0].tokens_by_frequency = order.to(self.device, torch.int32)

    @property
    def base_model(self) -> nn.Module:
        """This model. What asks for hidden states here to make a loss of its own (trl's trainers do) would
        train the first head alone; it gets heads' output, which says so."""
        return self

    # -- from and to a stock model ------------------------------------------------------------------------

    @classmethod
    def from_base(
        cls,
        base: str | PreTrainedModel,
        num_token_heads: int = 3,
        dtype: torch.dtype | None = None,
        head_init: Literal["random", "copy"] = "random",
        head_layers: int = 1,
        head_source: Literal["penultimate", "last"] = "penultimate",
        own_output_embedding: bool = False,
        own_final_norm: bool = False,
        head_gradient_scale: float = 0.1,
        correlator_rank: int = 0,
        correlator_kind: str = "mlp",
        **hub: Any,
    ) -> DynamoForCausalLM:
        """A stock model with new heads 2 .. `num_token_heads`: a folder, a hub id, a GGUF file, or a loaded
        model.

        Stem and first head are the base's, exactly; a loaded one becomes the backbone itself, not a copy of
        it. New layers are drawn from the global torch generator ("random", the paper's suite) or copied from
        the base's last layer ("copy", its ablation). `dtype` None is float32: training wants it, and many
        files declare 16 bits, which are slow on CPU. `hub` goes to `from_pretrained` (revision, token,
        local_files_only, gguf_file ..).

        Raises ValueError if the base is of no supported family or the checkpoint does not fill the model;
        OSError if it is not found.
        """
        if head_init not in ("random", "copy"):
            raise ValueError(f"head_init: expected 'random' or 'copy', got {head_init!r}")
        name = base.config.name_or_path if isinstance(base, PreTrainedModel) else str(base)
        if not isinstance(base, PreTrainedModel):
            base = load_base(base, dtype=dtype, **hub)
        elif dtype is not None or hub:
            raise ValueError(f"dtype, {', '.join(hub)}: they are for a base that is still to be loaded")
        config = DynamoConfig.from_base(
            base.config,
            num_token_heads=num_token_heads,
            head_layers=head_layers,
            head_source=head_source,
            own_output_embedding=own_output_embedding,
            own_final_norm=own_final_norm,
            head_gradient_scale=head_gradient_scale,
            correlator_rank=correlator_rank,
            correlator_kind=correlator_kind,
            base_model=heads_file.origin(name, hub.get("revision")),
        )
        model = cls(config, backbone=base)
        model.token_heads.to(device=base.device, dtype=base.dtype)
        model.generation_config = copy.deepcopy(base.generation_config)
        if head_init == "copy":
            model._copy_heads_from_base()
        return model

    from_pythia = from_base  # its older name

    @torch.no_grad()
    def _copy_heads_from_base(self) -> None:
        architecture = architecture_of(self.config)
        last, norm = architecture.layers(self.backbone)[-1], architecture.final_norm(self.backbone)
        for head in self.token_heads:
            for layer in head.layers:
                layer.load_state_dict(last.state_dict())
            if head.final_layer_norm is not None:
                head.final_layer_norm.load_state_dict(norm.state_dict())
            if head.output_embedding is not None:
                head.output_embedding.load_state_dict(self.get_output_embeddings().state_dict())

    def to_base(self, shared: bool = False) -> PreTrainedModel:
        """The first head as a stock model of its family, with the same logits bit for bit.

        A copy; `shared` makes it a view on this model's own weights, for running beside it.
        """
        # Layers that hold weights, not the weights: quantised layers keep more beside them.
        holders = [each for each in self.backbone.modules() if each._parameters] if shared else []
        base = copy.deepcopy(self.backbone, {id(each): each for each in holders})
        config = self.config.to_base()
        for module in base.modules():
            if hasattr(module, "config"):
                module.config = config
        base.generation_config = copy.deepcopy(self.generation_config)
        return base

    to_pythia = to_base  # its older name

    # -- heads alone --------------------------------------------------------------------------------------

    def save_heads(self, folder: str | os.PathLike, base_name: str | None = None) -> None:
        """The extra heads in 16 bits, with correlators and configuration, and which base they belong to.

        base_name: hub id or folder by which `from_heads` finds the base, by default what `from_base` was
        given. The folder is complete or as it was; other files in it stay. Heads that 16 bits do not hold
        exactly are rounded. Of use only with the base as it is here: where it was trained along with the
        heads, save the whole model.

        Raises ValueError for a model without extra heads and a folder of a whole model, OSError where the
        folder cannot be written.
        """
        heads_file.save_heads(self, folder, base_name)

    @classmethod
    def from_heads(
        cls,
        folder: str | os.PathLike,
        base: str | PreTrainedModel | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> DynamoForCausalLM:
        """A whole model from heads saved alone, in a folder or on the hub, and their base.

        base: a folder, a hub id or a loaded model, which becomes the backbone itself; by default the one that
        the heads name, from its folder, the hub's cache or the hub. dtype: where the base is not loaded yet,
        float32 by default. `hub` goes to both lookups, but `revision` to the heads' alone. Another precision
        of the heads' base is taken, which is logged.

        Raises ValueError for another model than their base and a damaged folder, OSError for a base that is
        not found.
        """
        return heads_file.from_heads(cls, folder, base, dtype, **hub)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, *arguments: Any, **options: Any) -> Any:
        """transformers' own; a folder of heads alone is not taken for a damaged one."""
        try:
            return super().from_pretrained(name, *arguments, **options)
        except OSError:
            if not heads_file.is_heads_only(name, options):
                raise
        raise ValueError(
            f"{name} holds token heads alone, without their base: load them with "
            f"dynamo.load({str(name)!r}) or DynamoForCausalLM.from_heads({str(name)!r})"
        )

    # -- forward ------------------------------------------------------------------------------------------

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        target_counts: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DynamoOutput:
        """All heads over a whole sequence: input_ids (batch, seq), labels (batch, seq) with -100 left out.

        Head n at position t is scored on the label at t + n (method: the modified causal-LM objective). With
        labels in training logits are left out unless `return_logits=True`. Where this is a part of a batch,
        target_counts (heads,), or num_items_in_batch for all heads, as Trainer gives it, divides each head's
        nats instead of the number of its own valid targets. With a cache, or with `logits_to_keep` as
        `generate` asks for it, only head 1 runs. Hidden states and attentions are the base's.

        Raises ValueError for arguments that it does not know and for losses that it cannot give.
        """
        check_arguments({"num_items_in_batch": num_items_in_batch, **kwargs}, labels)
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        tokens = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        inputs = {**tokens, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        if use_cache or past_key_values is not None or isinstance(logits_to_keep, Tensor) or logits_to_keep:
            if labels is not None:
                raise ValueError("labels: losses need every position of every head; leave caches out")
            cache = {"past_key_values": past_key_values, "use_cache": use_cache}
            asked = {"output_hidden_states": hidden, "output_attentions": attentions}
            output = self.backbone(
                logits_to_keep=logits_to_keep, return_dict=True, **cache, **asked, **inputs
            )
            return DynamoOutput(**output)
        # A list of layers, or layer 0, is asked for as well as True is.
        captured = Capture(hidden not in (None, False), bool(attentions))
        with captured.recording(self.backbone):
            states = self.head_states(**inputs)
        if return_logits is None:
            return_logits = labels is None or not self.training
        logits = [self.head_logits(n, state) for n, state in enumerate(states)] if return_logits else None
        losses = {}
        if labels is not None:
            embedded = self._embedded(input_ids, inputs_embeds) if self.config.correlator_rank else None
            losses = self.losses(
                states, labels, embedded, position_ids, logits, target_counts, num_items_in_batch
            )
        return DynamoOutput(
            logits=None if logits is None else logits[0],
            head_logits=None if logits is None else torch.stack(logits),
            **losses,
            **captured.outputs(states[0]),
        )

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        return self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

    def head_states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> list[Tensor]:
        """Each head's hidden states after the final norm: `num_token_heads` tensors (batch, seq, hidden).

        kwargs go to the layers, whose attention may have a use for them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: give exactly one of them")
        architecture, base, config = architecture_of(self.config), self.backbone, self.config
        embedded = self._embedded(input_ids, inputs_embeds)
        hidden_states = architecture.embed_dropout(base, embedded)  # (batch, seq, hidden)
        window = architecture.window(config.text_config)
        if window is not None and hidden_states.shape[1] > window:
            raise ValueError(
                f"input_ids: expected at most {window} positions, as far as this base sees, got "
                f"{hidden_states.shape[1]}; cut the texts"
            )
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
        context = {
            # None would be causal under sdpa and not causal under eager: the mask is always asked for.
            "attention_mask": create_causal_mask(
                config=config.text_config,
                inputs_embeds=hidden_states,
                attention_mask=attention_mask,
                past_key_values=None,
                position_ids=position_ids,
            ),
            "position_embeddings": base.base_model.rotary_emb(hidden_states, position_ids=position_ids),
            **kwargs,
        }
        # Whole layers, as gradient checkpointing and FSDP hook into their `forward`.
        outputs = walk_heads(
            base.base_model.layers,
            self.token_heads,
            config.head_source == "last",
            hidden_states,
            lambda layer, states, _: layer(states, **context),
            to_heads=lambda states: scale_gradient(states, config.head_gradient_scale),
        )
        normed = [architecture.final_norm(base)(outputs[0])]
        for head, output in zip(self.token_heads, outputs[1:], strict=True):
            normed.append(self._extra_norm(head, output))
        return normed

    def _extra_norm(self, head: TokenHead, hidden_states: Tensor) -> Tensor:
        if head.final_layer_norm is not None:
            return head.final_layer_norm(hidden_states)
        shared = architecture_of(self.config).final_norm(self.backbone)
        return scaled_call(shared, hidden_states, self.config.head_gradient_scale)

    # -- training -----------------------------------------------------------------------------------------

    def freeze_base(self) -> None:
        """Train the extra heads only (the paper's variant H): the base model's parameters get no gradient."""
        self.backbone.requires_grad_(False)

    def parameter_groups(
        self, base_lr: float, head_lr: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups: the base at LR_B, the extra heads at LR_M (frozen parameters are in neither).

        With weight decay each is split, as norms, biases and embeddings take none. Every trainable parameter
        is in exactly one group; this is checked.
        """
        return parameter_groups(
            {"base": (self.backbone, base_lr), "heads": (self.token_heads, head_lr)}, weight_decay, whole=self
        )


def load_dynamo(path: str, dtype: torch.dtype | None = None, **hub: Any) -> DynamoForCausalLM:
    """A DynaMo checkpoint, float32 unless told otherwise, refused unless every weight was filled."""
    return load_filled(DynamoForCausalLM, "DynaMo", path, dtype, **hub)
