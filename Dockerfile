# Two images of one server: `docker build --target cpu .` and `docker build --target cuda .`
# The CUDA libraries come with torch's wheels, so both stand on the same slim base.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY client client
COPY server server
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && printf 'hotclip[server] @ file://%s\n' /wheels/hotclip-*.whl > /wheels/requirements.txt \
    && grep -E '^(torch|torchvision)==' constraints.txt > /wheels/torch.txt

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/hotclip/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/hub
RUN groupadd --gid 10001 hotclip \
    && useradd --uid 10001 --gid hotclip --no-create-home --home-dir /data hotclip \
    && install --directory --owner=hotclip --group=hotclip /data \
    && python -m venv /opt/hotclip
WORKDIR /data
COPY constraints.txt /opt/hotclip/constraints.txt

FROM base AS cpu
# Wheels of torch without CUDA; empty takes them from the default package index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Without dependencies: that index does not hold the pinned ones, the next step installs them.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} \
    -r /wheels/torch.txt \
    && pip install --no-cache-dir -c /opt/hotclip/constraints.txt -r /wheels/requirements.txt
ENV HOTCLIP_DEVICE=cpu
VOLUME ["/data", "/tmp"]
EXPOSE 50051
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-m", "hotclip_server.healthcheck", "127.0.0.1:50051"]
ENTRYPOINT ["hotclip-server", "--data-dir", "/data", "--port", "50051"]
CMD ["--host", "127.0.0.1"]

FROM base AS cuda
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /opt/hotclip/constraints.txt -r /wheels/requirements.txt
ENV HOTCLIP_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/data", "/tmp"]
EXPOSE 50051
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-m", "hotclip_server.healthcheck", "127.0.0.1:50051"]
ENTRYPOINT ["hotclip-server", "--data-dir", "/data", "--port", "50051"]
CMD ["--host", "127.0.0.1"]
