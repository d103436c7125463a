# Both stages in a container.
#
#   docker build -t text2mask .                                                                 # with CUDA
#   docker build -t text2mask --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .    # CPU alone: 1 GB, not 7
#   docker run --rm -v "$PWD/photos:/photos" -v "$PWD/out:/out" -v text2mask-models:/models text2mask \
#       pseudolabel generate --root /photos --store /out/masks                                  # with a GPU: --gpus all
#
# The volume text2mask-models keeps what is fetched from the model hub. `demo` takes the place of `pseudolabel generate ...`
# for a look at both stages without any download.
FROM python:3.12-slim-bookworm AS build
# pydensecrf2 is compiled on installation; the compiler stays in this stage.
# hadolint ignore=DL3008  # whichever compiler the base image's Debian has
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Torch first, from the index asked for: what depends on it then takes it as it is.
ARG TORCH_INDEX=https://pypi.org/simple
# hadolint ignore=DL3013  # pyproject.toml states which versions fit
RUN pip install --index-url "$TORCH_INDEX" torch torchvision
WORKDIR /app
COPY . .
RUN pip install --editable '.[train,export,coco]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
WORKDIR /app
VOLUME /models
CMD ["pseudolabel", "--help"]
