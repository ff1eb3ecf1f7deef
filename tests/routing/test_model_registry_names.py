"""Metadata that is read from the names of real models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.routing.model_registry import NameFacts, read_name
from tests.support.cases import each_case

# By name: billions of parameters, capabilities, vendor and type.
NAMES = {
    # Hugging Face and vLLM
    "Qwen2.5-Coder-14B": (14, "code", "qwen", ""),
    "Qwen/Qwen2.5-Coder-32B-Instruct-AWQ": (32, "code", "qwen", ""),
    "Qwen/Qwen2.5-VL-72B-Instruct": (72, "vision", "qwen", ""),
    "Qwen/Qwen2.5-14B-Instruct-1M": (14, "", "qwen", ""),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": (235, "", "qwen", ""),
    "Qwen/Qwen3-30B-A3B-Thinking-2507": (30, "reasoning", "qwen", ""),
    "Qwen/Qwen1.5-MoE-A2.7B": (None, "", "qwen", ""),
    "Qwen/QwQ-32B": (32, "reasoning", "qwen", ""),
    "Qwen/QVQ-72B-Preview": (72, "reasoning vision", "qwen", ""),
    "Qwen/Qwen3-Embedding-0.6B": (0.6, "", "qwen", "embedding"),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": (1.5, "", "alibaba", "embedding"),
    "Llama-3.3-70B-Instruct-GGUF": (70, "", "meta", ""),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": (11, "vision", "meta", ""),
    "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8": (405, "", "meta", ""),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (17, "vision", "meta", ""),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": (1.1, "", "tinyllama", ""),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": (70, "reasoning", "deepseek", ""),
    "deepseek-ai/DeepSeek-V3-0324": (None, "", "deepseek", ""),
    "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct": (None, "code", "deepseek", ""),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (56, "", "mistral", ""),
    "mistralai/Mixtral-8x22B-v0.1": (176, "", "mistral", ""),
    "mistralai/Mistral-7B-Instruct-v0.1": (7, "", "mistral", ""),
    "mistralai/Devstral-Small-2505": (None, "code", "mistral", ""),
    "mistralai/Pixtral-12B-2409": (12, "vision", "mistral", ""),
    "mistralai/Magistral-Small-2506": (None, "reasoning", "mistral", ""),
    "mistralai/Codestral-22B-v0.1": (22, "code", "mistral", ""),
    "mistralai/Ministral-8B-Instruct-2410": (8, "", "mistral", ""),
    "NousResearch/Hermes-3-Llama-3.1-8B": (8, "", "nousresearch", ""),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": (49, "", "nvidia", ""),
    "nvidia/Llama-3.1-Nemotron-8B-UltraLong-4M-Instruct": (8, "", "nvidia", ""),
    "nvidia/NV-Embed-v2": (None, "", "nvidia", "embedding"),
    "nvidia/OpenCodeReasoning-Nemotron-32B": (32, "code reasoning", "nvidia", ""),
    "google/gemma-2-2b-it": (2, "", "google", ""),
    "google/gemma-3n-E4B-it": (4, "", "google", ""),
    "google/paligemma2-3b-mix-448": (3, "vision", "google", ""),
    "google/embeddinggemma-300m": (0.3, "", "google", "embedding"),
    "microsoft/phi-3.5-mini": (None, "", "microsoft", ""),
    "microsoft/Phi-4-mini-reasoning": (None, "reasoning", "microsoft", ""),
    "microsoft/Phi-4-multimodal-instruct": (None, "vision", "microsoft", ""),
    "microsoft/phi-1_5": (None, "", "microsoft", ""),
    "HuggingFaceTB/SmolLM-135M": (0.135, "", "huggingface", ""),
    "stabilityai/stablelm-2-1_6b": (1.6, "", "stabilityai", ""),
    "bigscience/bloom-7b1": (7.1, "", "bigscience", ""),
    "bigscience/bloom-560m": (0.56, "", "bigscience", ""),
    "EleutherAI/gpt-neox-20b": (20, "", "eleutherai", ""),
    "bigcode/starcoder2-15b": (15, "code", "bigcode", ""),
    "allenai/OLMoE-1B-7B-0924": (7, "", "allenai", ""),
    "ibm-granite/granite-34b-code-instruct-8k": (34, "code", "ibm", ""),
    "01-ai/Yi-34B-200K": (34, "", "01-ai", ""),
    "openbmb/MiniCPM-V-2_6": (None, "vision", "openbmb", ""),
    "OpenGVLab/InternVL3-8B": (8, "vision", "internlm", ""),
    "zai-org/GLM-4.5V": (None, "vision", "zai", ""),
    "zai-org/glm-4-9b-chat-1m": (9, "", "zai", ""),
    "moonshotai/Kimi-K2-Thinking": (None, "reasoning", "moonshotai", ""),
    "inclusionAI/Ling-1T": (1000, "", "inclusionai", ""),
    "AIDC-AI/Marco-o1": (None, "reasoning", "aidc-ai", ""),
    "MiniMaxAI/MiniMax-M1-80k": (None, "", "minimax", ""),
    "tiiuae/Falcon3-10B-Instruct-1.58bit": (10, "", "tii", ""),
    "microsoft/bitnet-b1.58-2B-4T": (2, "", "microsoft", ""),
    "mlx-community/Some-Model-4bit": (None, "", "mlx-community", ""),
    "someone/model-q4_0-8k-128k-v0.1-b200": (None, "", "someone", ""),
    "turboderp/Llama-3.1-8B-exl2-4.0bpw": (8, "", "meta", ""),
    "WizardLMTeam/WizardCoder-Python-34B-V1.0": (34, "code", "wizardlmteam", ""),
    "cross-encoder/ms-marco-MiniLM-L6-v2": (None, "", "cross-encoder", ""),
    # Ollama
    "llama3.1:8b": (8, "", "meta", ""),
    "llama3.1:8b-instruct-q4_0": (8, "", "meta", ""),
    "llama3.2-vision:11b": (11, "vision", "meta", ""),
    "deepseek-r1:1.5b": (1.5, "reasoning", "deepseek", ""),
    "deepseek-coder:6.7b": (6.7, "code", "deepseek", ""),
    "codellama:70b-code": (70, "code", "meta", ""),
    "mixtral:8x7b": (56, "", "mistral", ""),
    "qwen2.5vl:7b": (7, "vision", "qwen", ""),
    "qwen3:30b-a3b": (30, "", "qwen", ""),
    "gemma3:27b-it-qat": (27, "", "google", ""),
    "gpt-oss:20b": (20, "reasoning", "openai", ""),
    "llava:13b": (13, "vision", "", ""),
    "moondream:1.8b": (1.8, "vision", "moondream", ""),
    "minicpm-v:8b": (8, "vision", "openbmb", ""),
    "phi3:3.8b": (3.8, "", "microsoft", ""),
    "dolphin-phi:2.7b": (2.7, "", "microsoft", ""),
    "command-r-plus:104b": (104, "", "cohere", ""),
    "nomic-embed-text:latest": (None, "", "nomic", "embedding"),
    "bge-m3:567m": (0.567, "", "baai", "embedding"),
    "mxbai-embed-large:335m": (0.335, "", "mixedbread", "embedding"),
    "snowflake-arctic-embed:22m": (0.022, "", "snowflake", "embedding"),
    "all-minilm:33m": (0.033, "", "sentence-transformers", "embedding"),
    "hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M": (3, "", "meta", ""),
    "bge-reranker-v2-m3": (None, "", "baai", ""),
    # sold by the makers and by brokers
    "gpt-4o": (None, "vision", "openai", ""),
    "gpt-4o-mini-2024-07-18": (None, "vision", "openai", ""),
    "gpt-4o-audio-preview": (None, "", "openai", ""),
    "gpt-4o-mini-tts": (None, "", "openai", ""),
    "gpt-4.1-nano": (None, "vision", "openai", ""),
    "gpt-4-0125-preview": (None, "", "openai", ""),
    "gpt-oss-120b": (120, "reasoning", "openai", ""),
    "gpt-5-codex": (None, "code", "openai", ""),
    "openai/o1-preview": (None, "reasoning", "openai", ""),
    "o3": (None, "reasoning", "openai", ""),
    "o4-mini": (None, "reasoning", "openai", ""),
    "text-embedding-3-large": (None, "", "openai", "embedding"),
    "text-embedding-004": (None, "", "google", "embedding"),
    "whisper-1": (None, "", "openai", ""),
    "claude-3-5-sonnet-20241022": (None, "vision", "anthropic", ""),
    "anthropic/claude-3.7-sonnet:thinking": (None, "reasoning vision", "anthropic", ""),
    "models/gemini-1.5-pro": (None, "vision", "google", ""),
    "gemini-embedding-001": (None, "", "google", "embedding"),
    "deepseek-reasoner": (None, "reasoning", "deepseek", ""),
    "grok-code-fast-1": (None, "code", "xai", ""),
    "grok-4-fast-non-reasoning": (None, "", "xai", ""),
    "mistral-embed": (None, "", "mistral", "embedding"),
    "voyage-3-large": (None, "", "voyage", "embedding"),
    "jina-embeddings-v3": (None, "", "jina", "embedding"),
    "intfloat/multilingual-e5-large": (None, "", "intfloat", "embedding"),
    "intfloat/e5-mistral-7b-instruct": (7, "", "intfloat", "embedding"),
    "meta-llama/llama-3.3-70b-instruct:free": (70, "", "meta", ""),
    "accounts/fireworks/models/llama-v3p1-8b-instruct": (8, "", "meta", ""),
    "accounts/acme/some-model": (None, "", "acme", ""),
    "@cf/meta/llama-3.1-8b-instruct": (8, "", "meta", ""),
    # names that say little
    "my-model": (None, "", "", ""),
    "auto": (None, "", "", ""),
    "decoder-base": (None, "", "", ""),
    "wikipedia-20240101b": (None, "", "", ""),
    "nothing-0b": (None, "", "", ""),
    "": (None, "", "", ""),
}


@each_case("name", NAMES)
def test_a_name_tells_size_abilities_maker_and_type(name):
    params_b, capabilities, vendor, kind = NAMES[name]
    assert read_name(name) == NameFacts(
        pytest.approx(params_b) if params_b else None, frozenset(capabilities.split()), vendor, kind
    )


@each_case("name", NAMES)
def test_upper_and_lower_case_are_one(name):
    assert read_name(name.upper()) == read_name(name.lower())


def test_no_name_tells_of_tools():
    assert not any("tools" in read_name(name).capabilities for name in NAMES)


@given(st.text(alphabet="0123456789abcxm.-_:/ \n", max_size=60) | st.text())
def test_any_text_can_be_read(name):
    params_b = read_name(name).params_b
    assert params_b is None or params_b > 0


def test_of_a_very_long_name_only_the_beginning_is_read():
    assert read_name("qwen-7b" + "-70b" * 1_000_000).params_b == 70
    assert read_name("x" * 10_000 + "-7b").params_b is None
