"""Regimes: names of real models' tensors, shapes, configs and graphs, what was asked for, and tied names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
from hhtld.api.encode import encode
from hhtld.commands.main import main
from hhtld.dtypes import DTYPES
from hhtld.encoding.fingerprint import plan_facts
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.errors import HeaderError
from hhtld.gates import THRESHOLDS
from hhtld.matrix import TensorInfo
from hhtld.pack.table_checks import read_table
from hhtld.sources.contract import ArraySource
from hhtld.sources.regimes import choose_regimes, regime_of

# Of every architecture what its own library calls its tensors, with shapes of a published model: rows looked up by
# index or scored as a vocabulary's, "index", and matrices of layers, convolutions and classifiers, "argmax".
ARCHITECTURES: dict[str, dict[str, list[tuple[str, tuple[int, ...]]]]] = {
    "GPT-2": {
        "index": [
            ("wte.weight", (50257, 768)),
            ("transformer.wpe.weight", (1024, 768)),
            ("lm_head.weight", (50257, 768)),
        ],
        "argmax": [("h.0.attn.c_attn.weight", (768, 2304)), ("transformer.h.3.mlp.c_fc.weight", (768, 3072))],
    },
    "GPT-NeoX": {
        "index": [("gpt_neox.embed_in.weight", (50432, 512)), ("embed_out.weight", (50432, 512))],
        "argmax": [("gpt_neox.layers.0.attention.query_key_value.weight", (1536, 512))],
    },
    "GPT-J": {
        "index": [("transformer.wte.weight", (50400, 4096)), ("lm_head.weight", (50400, 4096))],
        "argmax": [("transformer.h.0.mlp.fc_in.weight", (16384, 4096))],
    },
    "CTRL": {
        "index": [("transformer.w.weight", (246534, 1280)), ("lm_head.weight", (246534, 1280))],
        "argmax": [("transformer.h.0.multi_head_attention.Wq.weight", (1280, 1280))],
    },
    "OpenAI GPT": {
        "index": [
            ("transformer.tokens_embed.weight", (40478, 768)),
            ("transformer.positions_embed.weight", (512, 768)),
        ],
        "argmax": [("transformer.h.0.attn.c_proj.weight", (768, 768))],
    },
    "OPT": {
        "index": [
            ("model.decoder.embed_tokens.weight", (50272, 512)),
            ("model.decoder.embed_positions.weight", (2050, 1024)),
        ],
        "argmax": [("model.decoder.project_in.weight", (1024, 512)), ("model.decoder.project_out.weight", (512, 1024))],
    },
    "BLOOM": {
        "index": [("word_embeddings.weight", (250880, 1024)), ("transformer.word_embeddings.weight", (250880, 1024))],
        "argmax": [("h.0.self_attention.dense.weight", (1024, 1024)), ("h.0.mlp.dense_h_to_4h.weight", (4096, 1024))],
    },
    "T5": {
        "index": [
            ("shared.weight", (32128, 512)),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8)),
            ("lm_head.weight", (32128, 512)),
        ],
        "argmax": [
            ("encoder.block.0.layer.0.SelfAttention.q.weight", (512, 512)),
            ("decoder.block.0.layer.2.DenseReluDense.wi.weight", (2048, 512)),
        ],
    },
    "mT5": {
        "index": [("encoder.embed_tokens.weight", (250112, 512)), ("decoder.embed_tokens.weight", (250112, 512))],
        "argmax": [("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", (1024, 512))],
    },
    "BERT": {
        "index": [
            ("bert.embeddings.word_embeddings.weight", (30522, 768)),
            ("embeddings.position_embeddings.weight", (512, 768)),
            ("embeddings.token_type_embeddings.weight", (2, 768)),
            ("cls.predictions.decoder.weight", (30522, 768)),
        ],
        "argmax": [
            ("cls.predictions.transform.dense.weight", (768, 768)),
            ("cls.seq_relationship.weight", (2, 768)),
            ("encoder.layer.0.attention.output.dense.weight", (768, 768)),
            ("pooler.dense.weight", (768, 768)),
            ("embeddings.LayerNorm.weight", (768,)),
            ("classifier.weight", (2, 768)),
        ],
    },
    "RoBERTa": {
        "index": [
            ("lm_head.decoder.weight", (50265, 768)),
            ("roberta.embeddings.word_embeddings.weight", (50265, 768)),
        ],
        "argmax": [("lm_head.dense.weight", (768, 768)), ("classifier.out_proj.weight", (3, 768))],
    },
    "ALBERT": {
        "index": [
            ("albert.embeddings.word_embeddings.weight", (30000, 128)),
            ("predictions.decoder.weight", (30000, 128)),
        ],
        "argmax": [
            ("albert.encoder.embedding_hidden_mapping_in.weight", (768, 128)),
            ("predictions.dense.weight", (128, 768)),
        ],
    },
    "DistilBERT": {
        "index": [
            ("vocab_projector.weight", (30522, 768)),
            ("distilbert.embeddings.word_embeddings.weight", (30522, 768)),
        ],
        "argmax": [("vocab_transform.weight", (768, 768)), ("pre_classifier.weight", (768, 768))],
    },
    "DeBERTa": {
        "index": [
            ("deberta.encoder.rel_embeddings.weight", (512, 768)),
            ("lm_predictions.lm_head.weight", (128100, 768)),
        ],
        "argmax": [
            ("deberta.embeddings.embed_proj.weight", (768, 128)),
            ("lm_predictions.lm_head.dense.weight", (768, 768)),
            ("deberta.encoder.layer.0.attention.self.pos_key_proj.weight", (768, 768)),
        ],
    },
    "ELECTRA": {
        "index": [
            ("electra.embeddings.word_embeddings.weight", (30522, 128)),
            ("generator_lm_head.weight", (30522, 128)),
        ],
        "argmax": [
            ("electra.embeddings_project.weight", (256, 128)),
            ("discriminator_predictions.dense_prediction.weight", (1, 256)),
        ],
    },
    "XLNet": {
        "index": [("transformer.word_embedding.weight", (32000, 768)), ("lm_loss.weight", (32000, 768))],
        "argmax": [
            ("transformer.layer.0.ff.layer_1.weight", (3072, 768)),
            ("transformer.layer.0.rel_attn.r", (768, 12, 64)),
        ],
    },
    "XLM": {
        "index": [
            ("transformer.embeddings.weight", (30145, 2048)),
            ("transformer.lang_embeddings.weight", (15, 2048)),
            ("pred_layer.proj.weight", (30145, 2048)),
        ],
        "argmax": [("transformer.attentions.0.q_lin.weight", (2048, 2048))],
    },
    "BART": {
        "index": [("model.shared.weight", (50265, 768)), ("model.encoder.embed_positions.weight", (1026, 768))],
        "argmax": [
            ("classification_head.dense.weight", (768, 768)),
            ("model.encoder.layers.0.fc1.weight", (3072, 768)),
        ],
    },
    "Marian": {
        "index": [("model.decoder.embed_tokens.weight", (58101, 512)), ("lm_head.weight", (58101, 512))],
        "argmax": [
            ("model.decoder.layers.0.encoder_attn.out_proj.weight", (512, 512)),
            ("final_logits_bias", (1, 58101)),
        ],
    },
    "fairseq": {
        "index": [("decoder.output_projection.weight", (42024, 1024)), ("encoder.embed_tokens.weight", (42024, 1024))],
        "argmax": [("encoder.layers.0.self_attn.k_proj.weight", (1024, 1024))],
    },
    "CANINE": {
        "index": [
            ("char_embeddings.HashBucketCodeEmbedder_0.weight", (16384, 96)),
            ("char_embeddings.char_position_embeddings.weight", (16384, 768)),
        ],
        "argmax": [("projection.conv.weight", (768, 1536, 4))],
    },
    "LUKE": {
        "index": [
            ("entity_embeddings.entity_embeddings.weight", (500000, 256)),
            ("lm_head.decoder.weight", (50267, 768)),
        ],
        "argmax": [
            ("entity_embeddings.entity_embedding_dense.weight", (768, 256)),
            ("entity_predictions.transform.dense.weight", (256, 768)),
        ],
    },
    "MobileBERT": {
        "index": [("mobilebert.embeddings.word_embeddings.weight", (30522, 128))],
        "argmax": [("mobilebert.embeddings.embedding_transformation.weight", (512, 384))],
    },
    "Llama": {
        "index": [("model.embed_tokens.weight", (128256, 2048)), ("lm_head.weight", (128256, 2048))],
        "argmax": [("model.layers.0.self_attn.q_proj.weight", (2048, 2048)), ("score.weight", (2, 2048))],
    },
    "Llama, Mistral as published first": {
        "index": [("tok_embeddings.weight", (32000, 4096)), ("output.weight", (32000, 4096))],
        "argmax": [("layers.0.attention.wq.weight", (4096, 4096)), ("layers.0.feed_forward.w1.weight", (11008, 4096))],
    },
    "Mixtral": {
        "index": [("model.embed_tokens.weight", (32000, 4096))],
        "argmax": [
            ("model.layers.0.block_sparse_moe.gate.weight", (8, 4096)),
            ("model.layers.0.block_sparse_moe.experts.3.w2.weight", (4096, 14336)),
            ("model.layers.0.mlp.experts.gate_up_proj", (8, 28672, 4096)),
        ],
    },
    "Qwen2, Qwen3": {
        "index": [("model.embed_tokens.weight", (151936, 896)), ("lm_head.weight", (151936, 896))],
        "argmax": [
            ("model.layers.0.mlp.down_proj.weight", (896, 4864)),
            ("visual.patch_embed.proj.weight", (1280, 3, 2, 14, 14)),
            ("visual.merger.mlp.0.weight", (5120, 5120)),
        ],
    },
    "Gemma 3n": {
        "index": [
            ("model.language_model.embed_tokens_per_layer.weight", (262144, 8960)),
            ("model.embed_vision.embedding.weight", (128, 2048)),
        ],
        "argmax": [
            ("model.embed_vision.embedding_projection.weight", (2048, 2048)),
            ("model.language_model.per_layer_model_projection.weight", (8960, 2048)),
            ("model.language_model.layers.0.per_layer_projection.weight", (2048, 256)),
        ],
    },
    "Phi": {
        "index": [("transformer.embd.wte.weight", (51200, 2560)), ("lm_head.linear.weight", (51200, 2560))],
        "argmax": [("model.layers.0.mlp.fc1.weight", (10240, 2560)), ("lm_head.ln.weight", (2560,))],
    },
    "Fuyu": {
        "index": [("language_model.model.embed_tokens.weight", (262144, 4096))],
        "argmax": [("vision_embed_tokens.weight", (4096, 2700))],
    },
    "Falcon": {
        "index": [("transformer.word_embeddings.weight", (65024, 4544)), ("lm_head.weight", (65024, 4544))],
        "argmax": [("transformer.h.0.self_attention.query_key_value.weight", (4672, 4544))],
    },
    "MPT": {
        "index": [("transformer.wte.weight", (50432, 4096))],
        "argmax": [
            ("transformer.blocks.0.attn.Wqkv.weight", (12288, 4096)),
            ("transformer.blocks.0.ffn.up_proj.weight", (16384, 4096)),
        ],
    },
    "StarCoder": {
        "index": [("transformer.wte.weight", (49152, 6144)), ("transformer.wpe.weight", (8192, 6144))],
        "argmax": [("transformer.h.0.mlp.c_fc.weight", (24576, 6144))],
    },
    "ChatGLM": {
        "index": [
            ("transformer.embedding.word_embeddings.weight", (65024, 4096)),
            ("transformer.output_layer.weight", (65024, 4096)),
        ],
        "argmax": [("transformer.encoder.layers.0.mlp.dense_h_to_4h.weight", (27392, 4096))],
    },
    "OLMo": {
        "index": [("model.transformer.wte.weight", (50304, 2048)), ("model.transformer.ff_out.weight", (50304, 2048))],
        "argmax": [("model.transformer.blocks.0.ff_out.weight", (2048, 8192))],
    },
    "DeepSeek-V3": {
        "index": [
            ("model.layers.61.embed_tokens.weight", (129280, 7168)),
            ("model.layers.61.shared_head.head.weight", (129280, 7168)),
        ],
        "argmax": [("model.layers.61.eh_proj.weight", (7168, 14336)), ("model.layers.3.mlp.gate.weight", (256, 7168))],
    },
    "RWKV": {
        "index": [
            ("emb.weight", (65536, 2048)),
            ("head.weight", (65536, 2048)),
            ("rwkv.embeddings.weight", (50277, 768)),
        ],
        "argmax": [("blocks.0.att.key.weight", (2048, 2048)), ("blocks.0.att.time_maa_w1", (2048, 160))],
    },
    "Mamba": {
        "index": [("backbone.embeddings.weight", (50280, 768)), ("backbone.embedding.weight", (50280, 768))],
        "argmax": [
            ("backbone.layers.0.mixer.x_proj.weight", (80, 1536)),
            ("backbone.layers.0.mixer.A_log", (1536, 16)),
            ("backbone.layers.0.mixer.conv1d.weight", (1536, 1, 4)),
        ],
    },
    "ViT": {
        "index": [
            ("embeddings.position_embeddings", (1, 197, 768)),
            ("pos_embed", (1, 197, 768)),
            ("cls_token", (1, 1, 768)),
        ],
        "argmax": [
            ("embeddings.patch_embeddings.projection.weight", (768, 3, 16, 16)),
            ("patch_embed.proj.weight", (768, 3, 16, 16)),
            ("head.weight", (1000, 768)),
        ],
    },
    "DeiT": {
        "index": [("deit.embeddings.distillation_token", (1, 1, 768))],
        "argmax": [("distillation_classifier.weight", (1000, 768)), ("blocks.0.attn.qkv.weight", (2304, 768))],
    },
    "Swin": {
        "index": [
            ("swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", (169, 3)),
            ("layers.0.blocks.0.attn.relative_position_bias_table", (169, 3)),
        ],
        "argmax": [("patch_embed.proj.weight", (96, 3, 4, 4)), ("layers.0.downsample.reduction.weight", (192, 384))],
    },
    "BEiT": {
        "index": [
            ("beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table", (732, 12))
        ],
        "argmax": [("beit.encoder.layer.0.attention.attention.key.weight", (768, 768))],
    },
    "CLIP": {
        "index": [
            ("text_model.embeddings.token_embedding.weight", (49408, 512)),
            ("vision_model.embeddings.position_embedding.weight", (50, 768)),
            ("positional_embedding", (77, 512)),
        ],
        "argmax": [
            ("vision_model.embeddings.patch_embedding.weight", (768, 3, 32, 32)),
            ("text_projection.weight", (512, 512)),
            ("visual.proj", (768, 512)),
            ("visual.conv1.weight", (768, 3, 32, 32)),
        ],
    },
    "SigLIP": {
        "index": [
            ("vision_model.embeddings.position_embedding.weight", (196, 768)),
            ("vision_model.head.probe", (1, 1, 768)),
        ][:1],
        "argmax": [
            ("vision_model.embeddings.patch_embedding.weight", (768, 768)),
            ("vision_model.head.attention.in_proj_weight", (2304, 768)),
        ],
    },
    "DINOv2": {
        "index": [("embeddings.position_embeddings", (1, 1370, 384)), ("register_tokens", (1, 4, 384))],
        "argmax": [
            ("encoder.layer.0.mlp.weights_in.weight", (2048, 384)),
            ("patch_embed.proj.weight", (384, 3, 14, 14)),
        ],
    },
    "Whisper": {
        "index": [
            ("model.decoder.embed_tokens.weight", (51865, 384)),
            ("model.encoder.embed_positions.weight", (1500, 384)),
            ("proj_out.weight", (51865, 384)),
        ],
        "argmax": [("model.encoder.conv1.weight", (384, 80, 3)), ("model.decoder.layers.0.fc2.weight", (384, 1536))],
    },
    "wav2vec 2.0": {
        "index": [("quantizer.codevectors", (1, 640, 128)), ("lm_head.weight", (32, 768))],
        "argmax": [
            ("wav2vec2.encoder.pos_conv_embed.conv.weight_v", (768, 48, 128)),
            ("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1", (768, 48, 128)),
            ("wav2vec2.feature_projection.projection.weight", (768, 512)),
            ("project_hid.weight", (256, 768)),
        ],
    },
    "HuBERT": {
        "index": [("label_embs_concat", (504, 256))],
        "argmax": [("hubert.encoder.pos_conv_embed.conv.weight_g", (1, 1, 128)), ("final_proj.weight", (256, 768))],
    },
    "WavLM": {
        "index": [("encoder.layers.0.attention.rel_attn_embed.weight", (320, 12))],
        "argmax": [("encoder.layers.0.attention.gru_rel_pos_linear.weight", (8, 64))],
    },
    "SpeechT5": {
        "index": [
            ("speecht5.encoder.wrapped_encoder.embed_positions.pe_k.weight", (320, 64)),
            ("speecht5.encoder.prenet.embed_tokens.weight", (81, 768)),
        ],
        "argmax": [
            ("speecht5.decoder.prenet.speaker_embeds_layer.weight", (768, 1280)),
            ("speecht5.decoder.prenet.final_layer.weight", (768, 256)),
        ],
    },
    "EnCodec, DAC": {
        "index": [
            ("quantizer.layers.0.codebook.embed", (1024, 128)),
            ("quantizer.quantizers.0.codebook.weight", (1024, 8)),
            ("quantizer.vq.layers.0._codebook.embed", (1024, 128)),
        ],
        "argmax": [
            ("encoder.layers.0.conv.weight_v", (32, 1, 7)),
            ("quantizer.quantizers.0.in_proj.weight", (8, 1024, 1)),
        ],
    },
    "Bark": {
        "index": [
            ("semantic.input_embeds_layer.weight", (129600, 1024)),
            ("fine_acoustics.input_embeds_layers.0.weight", (1056, 1024)),
            ("fine_acoustics.lm_heads.0.weight", (1056, 1024)),
        ],
        "argmax": [("semantic.layers.0.mlp.in_proj.weight", (4096, 1024))],
    },
    "MusicGen": {
        "index": [
            ("decoder.model.decoder.embed_tokens.0.weight", (2049, 1024)),
            ("decoder.lm_heads.3.weight", (2048, 1024)),
        ],
        "argmax": [("enc_to_dec_proj.weight", (1024, 768))],
    },
    "VITS, Piper": {
        "index": [
            ("enc_p.emb.weight", (256, 192)),
            ("emb_g.weight", (904, 512)),
            ("enc_p.encoder.attn_layers.0.emb_rel_k", (1, 9, 96)),
            ("text_encoder.embed_tokens.weight", (178, 192)),
        ],
        "argmax": [("enc_p.proj.weight", (384, 192, 1)), ("dec.conv_pre.weight", (256, 192, 7))],
    },
    "Stable Diffusion UNet": {
        "index": [("class_embedding.weight", (1000, 1280)), ("label_emb.weight", (1000, 1024))],
        "argmax": [
            ("time_embedding.linear_1.weight", (1280, 320)),
            ("add_embedding.linear_1.weight", (1280, 2816)),
            ("down_blocks.0.resnets.0.time_emb_proj.weight", (320, 1280)),
            ("model.diffusion_model.time_embed.0.weight", (1280, 320)),
            ("model.diffusion_model.label_emb.0.0.weight", (1280, 2816)),
            ("model.diffusion_model.input_blocks.1.0.emb_layers.1.weight", (320, 1280)),
            ("down_blocks.0.attentions.0.proj_out.weight", (320, 320, 1, 1)),
        ],
    },
    "Stable Diffusion VAE": {
        "index": [("quantize.embedding.weight", (16384, 8))],
        "argmax": [("decoder.conv_in.weight", (512, 4, 3, 3)), ("quant_conv.weight", (8, 8, 1, 1))],
    },
    "Stable Diffusion 3, Flux": {
        "index": [("pos_embed.pos_embed", (1, 36864, 1536)), ("y_embedder.embedding_table.weight", (1001, 1152))],
        "argmax": [
            ("pos_embed.proj.weight", (1536, 16, 2, 2)),
            ("context_embedder.weight", (3072, 4096)),
            ("x_embedder.weight", (3072, 64)),
            ("time_text_embed.guidance_embedder.linear_1.weight", (3072, 256)),
            ("guidance_in.in_layer.weight", (3072, 256)),
            ("proj_out.weight", (64, 3072)),
        ],
    },
    "SAM": {
        "index": [
            ("vision_encoder.pos_embed", (1, 64, 64, 768)),
            ("vision_encoder.layers.2.attn.rel_pos_h", (127, 64)),
            ("mask_decoder.mask_tokens.weight", (4, 256)),
            ("prompt_encoder.point_embed.0.weight", (1, 256)),
        ],
        "argmax": [
            ("shared_image_embedding.positional_embedding", (2, 128)),
            ("vision_encoder.patch_embed.projection.weight", (768, 3, 16, 16)),
            ("prompt_encoder.mask_embed.conv1.weight", (4, 1, 2, 2)),
        ],
    },
    "DETR": {
        "index": [
            ("model.query_position_embeddings.weight", (100, 256)),
            ("query_embed.weight", (100, 256)),
            ("model.backbone.position_embedding.row_embeddings.weight", (50, 128)),
        ],
        "argmax": [
            ("class_embed.weight", (92, 256)),
            ("bbox_embed.layers.0.weight", (256, 256)),
            ("class_labels_classifier.weight", (92, 256)),
        ],
    },
    "Deformable DETR": {
        "index": [("model.level_embed", (4, 256))],
        "argmax": [
            ("model.reference_points.weight", (2, 256)),
            ("class_embed.0.weight", (91, 256)),
            ("bbox_embed.0.layers.1.weight", (256, 256)),
        ],
    },
    "LayoutLM": {
        "index": [
            ("embeddings.x_position_embeddings.weight", (1024, 768)),
            ("embeddings.h_position_embeddings.weight", (1024, 768)),
        ],
        "argmax": [("layoutlmv3.patch_embed.proj.weight", (768, 3, 16, 16))],
    },
    "BLIP": {
        "index": [
            ("text_decoder.cls.predictions.decoder.weight", (30524, 768)),
            ("vision_model.embeddings.position_embedding", (1, 577, 768)),
            ("query_tokens", (1, 32, 768)),
        ],
        "argmax": [
            ("language_projection.weight", (2560, 768)),
            ("vision_model.encoder.layers.0.self_attn.qkv.weight", (2304, 768)),
        ],
    },
    "Perceiver": {
        "index": [("perceiver.embeddings.latents", (256, 1280))],
        "argmax": [("perceiver.encoder.cross_attention.attention.self.query.weight", (256, 1280))],
    },
    "Decision Transformer": {
        "index": [("embed_timestep.weight", (4096, 128))],
        "argmax": [
            ("embed_return.weight", (128, 1)),
            ("embed_state.weight", (128, 17)),
            ("embed_action.weight", (128, 6)),
        ],
    },
    "LoRA and other adapters": {
        "index": [
            ("base_model.model.model.embed_tokens.base_layer.weight", (32000, 4096)),
            ("base_model.model.lm_head.modules_to_save.default.weight", (32000, 4096)),
            ("prompt_embeddings", (20, 1024)),
        ],
        "argmax": [
            ("base_model.model.model.embed_tokens.lora_embedding_A", (8, 32000)),
            ("encoder.embed_tokens.lora_A.weight", (8, 32000)),
            ("base_model.model.lm_head.lora_B.default.weight", (32000, 8)),
            ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 768)),
        ],
    },
    "sentence-transformers": {
        "index": [("embedding.weight", (30522, 256)), ("embeddings", (29528, 256))],
        "argmax": [("linear.weight", (768, 768)), ("linear.bias", (768,))],
    },
    "GGUF": {
        "index": [
            ("token_embd.weight", (32000, 2048)),
            ("position_embd.weight", (512, 768)),
            ("token_types.weight", (2, 768)),
            ("per_layer_token_embd.weight", (262144, 8960)),
            ("enc.blk.0.attn_rel_b.weight", (32, 8)),
            ("output.weight", (32000, 2048)),
            ("v.position_embd.weight", (577, 1024)),
            ("blk.46.nextn.shared_head_head.weight", (151552, 4096)),
        ],
        "argmax": [
            ("blk.0.attn_q.weight", (2048, 2048)),
            ("blk.0.ffn_gate_inp.weight", (8, 4096)),
            ("v.patch_embd.weight", (1024, 3, 14, 14)),
            ("cls.output.weight", (2, 768)),
            ("mm.0.weight", (4096, 1024)),
            ("per_layer_model_proj.weight", (8960, 2048)),
        ],
    },
    "tables of n-grams": {
        "index": [
            ("model.ngram_embeddings.word_embeddings.weight", (131072, 3072)),
            ("model.ngram_embeddings.embedders.0.weight", (10223617, 256)),
            ("model.layers.1.engram.multi_head_embedding.embedding.weight", (1293541, 160)),
            ("ngram.weight", (500000, 64)),
            ("engram.table", (500000, 64)),
            ("ple.weight", (262144, 256)),
            ("engram.0.weight", (300, 160)),
            ("engram.1.table", (300, 160)),
            ("engram_embed.weight", (300, 160)),
            ("blk.1.engram_embd.weight", (300, 160)),
            ("layers.1.engram.embed.weight", (300, 256)),
            ("model.layers.2.ngram_embed.3.weight", (300, 160)),
            ("model.n_gram.0.weight", (300, 160)),
            ("NGramEmbedding_0/kernel", (300, 160)),
            ("bigram.weight", (300, 160)),
            ("model.ple.0.weight", (300, 256)),
            ("ple_embed.weight", (300, 256)),
        ],
        "argmax": [
            ("model.ngram_embeddings.post_projs.0.weight", (3072, 256)),
            ("model.layers.1.engram.value_proj.weight", (2048, 1280)),
            ("model.layers.1.engram.key_projs.0.weight", (2048, 1280)),
            ("model.layers.1.engram.wkv.weight", (4096, 1280)),
            ("model.layers.1.engram.gate.weight", (2048, 2048)),
            ("blk.1.engram_gate.weight", (2048, 2048)),
        ],
    },
    "Flax": {
        "index": [("params/transformer/wte/embedding", (50257, 768)), ("embedder.input_embedding", (256128, 2048))],
        "argmax": [("params/vision_model/embeddings/patch_embedding/kernel", (32, 32, 3, 768))],
    },
}


def info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, DTYPES["F32"], shape)


class Named(ArraySource):
    """Tensors that are nothing but names and shapes."""

    def __init__(self, tensors: dict[str, tuple[int, ...]], config: dict[str, object] | None = None) -> None:
        super().__init__({}, files={} if config is None else {"config.json": json.dumps(config).encode()})
        self._infos = {name: info(name, shape) for name, shape in tensors.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_of_real_models(architecture: str) -> None:
    table = ARCHITECTURES[architecture]
    found = choose_regimes(Named(dict(table["index"] + table["argmax"])))
    for regime, tensors in table.items():
        assert {name: found[name] for name, _ in tensors if found[name].regime != regime} == {}


def test_the_table_is_as_wide_as_it_says() -> None:
    assert len(ARCHITECTURES) >= 40
    assert all(tensors["index"] and tensors["argmax"] for tensors in ARCHITECTURES.values())


def test_heads_are_known_by_the_size_of_the_vocabulary() -> None:
    head = {"head.weight": (1000, 64)}
    assert choose_regimes(Named(head))["head.weight"].regime == "argmax"
    for config in ({"vocab_size": 1000}, {"text_config": {"vocab_size": 1000}}, {"output_vocab_size": 1000}):
        assert choose_regimes(Named(head, config))["head.weight"] == ("index", "vocabulary: 1000 rows")
    assert choose_regimes(Named(head | {"emb.weight": (1000, 64)}))["head.weight"].regime == "index"
    inner = {"layers.0.fc.weight": (1000, 64), "pooler.dense.weight": (1000, 1000), "dense.weight": (1000, 500)}
    assert {c.regime for c in choose_regimes(Named(inner, {"vocab_size": 1000})).values()} == {"argmax"}


def test_a_config_that_is_none_says_nothing() -> None:
    source = Named({"head.weight": (1000, 64)})
    for data in (b"", b"[1]", b"{", b"[" * 100_000, b'{"vocab_size": "many"}', b"\xff"):
        source._files = {"config.json": data}
        assert choose_regimes(source)["head.weight"].regime == "argmax"


def test_key_values_of_gguf_tell_the_vocabulary() -> None:
    class Gguf(Named):
        fields: ClassVar[dict[str, Any]] = {}

        @property
        def description(self) -> dict[str, Any]:
            return {"gguf": {"fields": self.fields}}

    source = Gguf({"cls.weight": (1000, 64)})
    assert choose_regimes(source)["cls.weight"].regime == "argmax"
    for fields in (
        {"llama.vocab_size": {"type": "UINT32", "value": 1000}},
        {"tokenizer.ggml.tokens": {"type": "ARRAY", "of": "STRING", "value": ["t"] * 1000}},
    ):
        source.fields = fields
        assert choose_regimes(source)["cls.weight"].regime == "index"


def test_so_many_rows_are_a_table_whatever_their_name() -> None:
    assert regime_of(info("things.weight", (20_000, 64))) == ("index", "shape: 20000 rows")
    assert regime_of(info("things.weight", (2_000, 64))).regime == "argmax"
    assert regime_of(info("layers.0.things.weight", (20_000, 64))).regime == "argmax"


def test_what_was_asked_for_decides() -> None:
    source = Named({"wte.weight": (100, 8), "a.weight": (100, 8), "b.weight": (100, 8)})
    found = choose_regimes(source, {}, [("wte*", "argmax"), ("a.*", "index"), ("*", "argmax")])
    assert {name: choice.regime for name, choice in found.items()} == {
        "wte.weight": "argmax",
        "a.weight": "index",
        "b.weight": "argmax",
    }
    assert found["a.weight"].reason == "asked: a.*"
    with pytest.raises(ValueError, match=r"role 'lm_head\*' matches no tensor; the source has a.weight"):
        choose_regimes(source, {}, [("lm_head*", "index")])
    with pytest.raises(ValueError, match="no regime 'rows'; the regimes are argmax, index"):
        choose_regimes(source, {}, [("*", "rows")])
    with pytest.raises(TypeError, match="pairs of a glob and a regime"):
        choose_regimes(source, {}, ["*=index"])
    with pytest.raises(ValueError, match="matches no tensor; the source has no tensors"):  # a forest of trees in ONNX
        choose_regimes(Named({}), {}, [("*", "argmax")])


def test_of_tied_names_the_strictest_decides() -> None:
    source = Named({"a_proj.weight": (100, 60), "shared.weight": (100, 60)})
    found = choose_regimes(source, {"shared.weight": "a_proj.weight"})
    assert found["a_proj.weight"] == ("index", "tied to 'shared.weight': name: shared")
    assert found["shared.weight"] == ("index", "name: shared")
    asked = choose_regimes(source, {"shared.weight": "a_proj.weight"}, [("shared*", "argmax")])
    assert {choice.regime for choice in asked.values()} == {"argmax"}, "what was asked for decides for tied names, too"


# ---- in packs ----


@pytest.fixture(scope="module")
def gpt2() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    names = ("wte.weight", "h.0.attn.c_attn.weight")
    return {name: rng.standard_normal((600, 48), np.float32) for name in names}


def test_each_regime_has_its_own_gate(gpt2: dict[str, NDArray[np.float32]]) -> None:
    pack = encode(gpt2, "gates")
    for name, regime in (("wte.weight", "index"), ("h.0.attn.c_attn.weight", "argmax")):
        gates = pack.table.tensors[name].gates
        assert pack.table.regime(name) == regime
        assert gates is not None
        assert gates.passes(THRESHOLDS[regime])
    groups = [group.to_json() for group in pack.table.groups]
    assert [group.get("regime") for group in groups] == [None, "index"], "said where the role implies another"
    assert [group["role"] for group in groups] == ["other", "other"]
    assert pack.table.regime_reason("wte.weight") == "name: wte"
    assert pack.table.regime_reason("h.0.attn.c_attn.weight") == "role: other"


def test_a_pack_keeps_its_regimes(gpt2: dict[str, NDArray[np.float32]], tmp_path: Path) -> None:
    save_file(gpt2, tmp_path / "m.safetensors")
    first = hhtld.convert(
        tmp_path / "m.safetensors", tmp_path / "a.hhtld", profile="bits:4", roles=[("h.*", "index"), ("wte*", "argmax")]
    )
    told = {t.info.name: (t.regime, t.regime_reason) for t in first.tensors}
    assert told == {"h.0.attn.c_attn.weight": ("index", "asked: h.*"), "wte.weight": ("argmax", "role: other")}
    again = hhtld.convert(tmp_path / "a.hhtld", tmp_path / "b.hhtld", profile="bits:4")
    assert {t.info.name: t.regime for t in again.tensors} == {"h.0.attn.c_attn.weight": "index", "wte.weight": "index"}
    with hhtld.open(tmp_path / "b.hhtld") as pack:
        assert pack.table.regime_reason("h.0.attn.c_attn.weight") == "asked: h.*"


@pytest.mark.parametrize("profile", ["lookup", "f32"])
def test_lookup_grades_go_by_names_as_specified(profile: str) -> None:
    tensors = {
        "wte.weight": np.random.default_rng(3).standard_normal((600, 48), np.float32),
        "patch_embed.proj.weight": np.random.default_rng(4).standard_normal((600, 48), np.float32),
    }
    pack = encode(tensors, profile)
    assert pack.table.regime("wte.weight") == "argmax"
    assert pack.table.regime("patch_embed.proj.weight") == "index"
    assert not any("regime" in group.to_json() for group in pack.table.groups)
    with pytest.raises(ValueError, match="roles are for profiles gates, parity and bits:B"):
        make_plan(ArraySource(tensors), Encoding(profile, roles=[("wte*", "index")]))


def test_tied_names_take_the_strictest_role_and_each_has_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = np.random.default_rng(3).standard_normal((600, 48), np.float32)
    save_file({"decoder.weight": table, "encoder.embed_tokens.weight": table.copy()}, tmp_path / "m.safetensors")
    command = ["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "m.hhtld"), "--profile", "gates"]
    assert main(command) in (0, 1)  # such a small file may miss the ratio
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ".weight " in line]
    assert [(line[0], line[4], line[5]) for line in lines[:2]] == [
        ("decoder.weight", "hhtl_t", "index"),
        ("encoder.embed_tokens.weight", "tied", "index"),
    ]
    assert main([*command, "--json"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)["tensors"]
    assert [t["regime"] for t in told] == ["index", "index"]
    assert told[0]["cosine"] == told[1]["cosine"]
    assert told[0]["cosine"]["median"] >= 0.98
    assert main(["inspect", str(tmp_path / "m.hhtld"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(t["regime"], t["regime_reason"]) for t in facts["tensors"]] == [("index", "role: embed")] * 2


def test_a_rule_for_one_of_tied_names_decides_for_both() -> None:
    table = np.random.default_rng(3).standard_normal((600, 48), np.float32)
    source = ArraySource({"lm_head.weight": table, "model.embed_tokens.weight": table.copy()})
    for rules, codec in (
        ([], "hhtl_t"),
        ([("model.embed_tokens.weight", "keep")], "keep"),
        ([("model.*", "keep"), ("lm_head.*", "bits:2")], "hhtl_t"),
    ):
        plan = make_plan(source, Encoding("bits:3", rules=rules))
        assert plan.tensors["lm_head.weight"].codec.id == codec
        assert plan.tensors["model.embed_tokens.weight"].alias_of == "lm_head.weight"


def test_roles_on_the_command_line(
    gpt2: dict[str, NDArray[np.float32]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(gpt2, tmp_path / "m.safetensors")
    command = ["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "m.hhtld"), "--profile", "bits:3"]
    assert main([*command, "--role", "h.*=index", "--json"]) == 0
    told = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}
    assert told["h.0.attn.c_attn.weight"]["regime"] == "index"
    assert told["h.0.attn.c_attn.weight"]["regime_reason"] == "asked: h.*"
    assert main(["inspect", str(tmp_path / "m.hhtld"), "--tensor", "h.0.attn.c_attn.weight"]) == 0
    assert "index (asked: h.*)" in capsys.readouterr().out
    assert main([*command, "--role", "x.*=index"]) == 2
    assert "role 'x.*' matches no tensor" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--role", "h.*=rows"])
    assert "expected GLOB=index or GLOB=argmax" in capsys.readouterr().err


def test_other_roles_are_another_conversion(gpt2: dict[str, NDArray[np.float32]]) -> None:
    source = ArraySource(gpt2)
    plans = [make_plan(source, Encoding("bits:3", roles=roles)) for roles in ([], [("wte*", "argmax")])]
    assert plan_facts(plans[0]) != plan_facts(plans[1]), "so that --resume does not mix them"


def test_a_regime_that_is_none_is_refused(gpt2: dict[str, NDArray[np.float32]]) -> None:
    pack = encode(gpt2, "bits:3")
    for place, key, value, message in (
        ("groups", "regime", "row", "regime must be argmax or index, got 'row'"),
        ("groups", "regime", "", "regime must be"),
        ("groups", "regime", None, "regime must be"),
        ("groups", "regime", ["index"], "regime must be"),
        ("tensors", "regime_reason", 7, "regime_reason must be text"),
    ):
        table = pack.table.to_json()
        table[place][1][key] = value
        with pytest.raises(HeaderError, match=message):
            read_table(table, pack.sections)
