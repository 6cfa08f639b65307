# An image that serves an engine, for x86_64 and aarch64: docs/serving.md says how to build and run it.
FROM python:3.13-slim-trixie AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
    cmake=3.* g++=4:14.* libonnxruntime-dev=1.* ninja-build=1.* \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# A wheel without the native operators is named "any": then the build ends here. `--verbose` says why.
RUN pip wheel --verbose --no-cache-dir --no-deps --wheel-dir /wheels . \
 && test ! -e /wheels/*-any.whl \
 && echo "bita-edge[serve] @ file://$(ls /wheels/*.whl)" > /wheels/requirements.txt

FROM python:3.13-slim-trixie
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --requirement /wheels/requirements.txt \
 && useradd --create-home --uid 1000 bita
USER 1000
WORKDIR /home/bita
EXPOSE 8000
# loading a large engine takes a while
HEALTHCHECK --start-period=60s --timeout=5s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
# The engine is mounted at /engine; options of `bita serve` may follow the image's name.
ENTRYPOINT ["bita", "serve", "/engine", "--host", "0.0.0.0", "--port", "8000"]
