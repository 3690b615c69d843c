# The service as an image, for CPUs:
#
#     docker build -t meld .
#     docker run --rm -p 127.0.0.1:8000:8000 -v meld-data:/data -v "$PWD/key.txt":/run/secrets/key:ro meld
#
# docs/deploy.md says what else it needs. Nothing is downloaded when it starts. With `--build-arg
# RUNTIME=onnx` it is built without PyTorch, for bundles with ONNX graphs.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG RUNTIME=torch
# PyTorch's builds for CPUs are a tenth of those for GPUs, which need CUDA's libraries as well. What
# else PyTorch needs is in the requirements, with its hash.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Python's own copy of setuptools is an old one, and nothing here needs it; PyTorch brings its own.
RUN python -m venv /opt/meld && /opt/meld/bin/pip uninstall --yes setuptools
ENV PATH=/opt/meld/bin:$PATH
WORKDIR /src
RUN if [ "$RUNTIME" = torch ]; then pip install --no-deps --no-compile --index-url "$TORCH_INDEX" \
    torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0; fi
COPY deploy/requirements-torch.txt deploy/requirements-onnx.txt deploy/
RUN pip install --no-deps --no-compile --require-hashes -r "deploy/requirements-$RUNTIME.txt"
COPY pyproject.toml README.md LICENSE cli.py meld.py ./
COPY console/ console/
COPY fusion/ fusion/
COPY pipeline/ pipeline/
COPY serving/ serving/
RUN pip install --no-deps --no-compile . && pip uninstall --yes pip
# Byte code is made here: where it runs, the file system is read only. A file that does not compile
# is one that nobody imports. Tests are left out, and architectures that the bundled models are not.
RUN python -m compileall -q -j 0 -x '/(tests?|testing|_inductor)/|/transformers/models/(?!auto|bert/)' \
    /opt/meld/lib || true

FROM python:${PYTHON}-slim-bookworm AS runtime
COPY --from=build /opt/meld /opt/meld
ENV PATH=/opt/meld/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["meld"]

# Amazon SageMaker runs `docker run IMAGE serve` as root, and asks for /ping and /invocations.
FROM runtime AS sagemaker
COPY --chmod=755 deploy/sagemaker-serve /usr/local/bin/
COPY deploy/sagemaker.toml /etc/meld/
EXPOSE 8080
ENTRYPOINT ["sagemaker-serve"]

FROM runtime AS service
# The folder is there with its owner before a volume is mounted on it, which takes the owner over.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin meld \
    && install --directory --owner=meld --group=meld --mode=700 /data
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=6s --start-period=120s \
    CMD ["python", "-m", "serving.probe", "/data"]
CMD ["serve", "--host", "0.0.0.0", "--data-dir", "/data", "--key-file", "/run/secrets/key", "--log", "json"]
