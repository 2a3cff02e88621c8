"""See what models make of a drawing or a picture: the command `imageclf demo`.

    uv run imageclf demo                                    # data/model, and the newest experiment of each kind of net
    uv run imageclf demo --model study-mlp-s0 --model study-cnn-permuted-s0

Opens a page in the browser. Nothing is loaded from elsewhere, and only this machine can reach the page.
"""

import argparse
import base64
import hashlib
import io
import re
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from imageclf.contracts.preparation import Shape
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.usage import addresses, models

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from imageclf.inference.predictor import Predictor

PAGE = Path(__file__).with_name("demo.html")
MOST_BYTES = 20 * 2**20
"""Largest picture that the page may send."""
MOST_MODELS = 4
"""Number of models that are chosen if none is named."""


def application(predictors: "dict[str, Predictor]") -> "Starlette":
    """Return the web application that asks these models, by name."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    text = PAGE.read_text(encoding="utf-8").replace(
        "BOX", str(_box([each.spec.raw_shape for each in predictors.values()]))
    )

    async def page(_request: Request) -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": _policy(text)})

    async def predict(request: Request) -> Response:
        data = b""
        async for piece in request.stream():
            data += piece
            if len(data) > MOST_BYTES:
                return JSONResponse({"error": f"more than {MOST_BYTES // 2**20} MiB"}, 413)
        try:
            return JSONResponse(await run_in_threadpool(_answers, predictors, data))
        except UserError as error:
            return JSONResponse({"error": str(error)}, 422)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=[Route("/", page), Route("/predict", predict, methods=["POST"])], middleware=[hosts])


def _box(shapes: Sequence[Shape]) -> int:
    """Return the part of 280 pixels that a drawing should fill; 0 for color images, which stay as they are.

    A digit of MNIST fills 20 of 28 pixels, one of the smaller digits almost all of 8.
    """
    if any(channels == 3 for channels, _, _ in shapes):
        return 0
    return 200 if shapes[0][1] >= 28 else 260


def _policy(text: str) -> str:
    """Return the content security policy: only the page's own style and script, which are named by their digests."""
    parts = {name: re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)[0] for name in ("style", "script")}
    digests = {name: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for name, part in parts.items()}
    allowed = " ".join(f"{name}-src 'sha256-{digest}';" for name, digest in digests.items())
    return f"default-src 'none'; connect-src 'self'; img-src data: blob:; {allowed}"


def _answers(predictors: "dict[str, Predictor]", data: bytes) -> list[dict[str, Any]]:
    """Return for each model its name, the classes from the most probable on, and the picture that its net sees."""
    found = []
    for name, predictor in predictors.items():
        raw = predictor.read(data)[None]
        (row,) = predictor.probabilities(raw)
        order = (-row).argsort(kind="stable")[:5]
        ranking = [{"class": predictor.spec.classes[index], "probability": float(row[index])} for index in order]
        found.append({"name": name, "ranking": ranking, "seen": _as_address(predictor.prepared(raw)[0])})
    return found


def _as_address(pixels: Any) -> str:
    """Return pixels (C, H, W) as the `data:` address of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chosen() -> list[str]:
    """Return data/model, and the first experiment that `dvc exp show` lists of each net, plain and permuted."""
    from imageclf.study import experiments

    kinds: dict[tuple[Any, Any], str] = {}
    for name, experiment in experiments.show().items():
        if experiment.complete:
            kinds.setdefault((experiment.params.get("model"), experiment.params.get("permute")), name)
    return [*([str(paths.MODEL)] if paths.MODEL_SPEC.is_file() else []), *kinds.values()][:MOST_MODELS]


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf demo`."""
    parser = argparse.ArgumentParser(prog, description="Draw or drop a picture, and see what models make of it.")
    parser.add_argument("--model", action="append", help=addresses.HELP)
    parser.add_argument("--port", type=int, default=8765, help="default 8765")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    given = parser.parse_args(arguments)
    names = given.model or chosen()
    if not names:
        raise UserError(f"there is no model: {paths.MODEL} is empty; `uv run dvc repro` trains one, or use --model")
    predictors = {name: models.load(name) for name in names}
    import uvicorn

    address = f"http://127.0.0.1:{given.port}"
    print(f"{', '.join(names)}: {address} (Ctrl-C ends it)", flush=True)
    if not given.no_browser:
        Timer(1, webbrowser.open, [address]).start()
    uvicorn.run(application(predictors), host="127.0.0.1", port=given.port, log_level="warning")
