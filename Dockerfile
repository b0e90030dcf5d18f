# The serving image: NVIDIA Triton with the airserve package. Not built by the project's CI (docs/NOT_EXECUTED.md).
#
#   docker build -t airserve .
#   docker run --gpus all --shm-size=1g -p 8000-8002:8000-8002 -v /path/to/model_repository:/models:ro airserve
#
# The TensorRT plan must be built inside this same image, on the GPU that serves it:
#   docker run --gpus all -v /path/to/engine:/engine --entrypoint python3 airserve /app/build/compile_engine.py --engine /engine

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.10-py3

FROM ${TRITON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python3 -m pip wheel --no-deps --wheel-dir /wheels .

FROM ${TRITON_IMAGE} AS server
COPY --from=wheel /wheels /wheels
# NumPy comes with the image; tritonclient's protobuf writes the configurations, Polygraphy builds the engine.
RUN python3 -m pip install --no-cache-dir /wheels/*.whl "tritonclient[grpc]==2.73.0" cyclopts polygraphy==0.53.6 \
    && rm -rf /wheels
COPY build /app/build
COPY clients /app/clients
RUN useradd --create-home --uid 10001 airserve && mkdir -p /models && chown airserve /models
USER airserve
WORKDIR /app
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"
# Checks the plan against this image's TensorRT and GPU, takes --certificate, --trace and ports, and starts tritonserver.
ENTRYPOINT ["python3", "/app/clients/serve_repository.py", "--tritonserver", "/opt/tritonserver/bin/tritonserver", \
            "--host", "0.0.0.0"]
CMD ["--repository", "/models"]
