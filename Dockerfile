# One image for every command; without arguments it serves the query API.

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/build.lock requirements/
RUN pip install --no-cache-dir --require-hashes --requirement requirements/build.lock
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.11-slim
COPY --from=build /src/requirements/run.lock /wheels /tmp/rxstore/
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/rxstore/run.lock \
    && pip install --no-cache-dir --no-deps /tmp/rxstore/*.whl \
    && rm -r /tmp/rxstore \
    && useradd --system --create-home --uid 10001 rxstore
USER rxstore
WORKDIR /home/rxstore
EXPOSE 8443
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8443/health/ready', timeout=4)"]
ENTRYPOINT ["rxstore"]
CMD ["serve", "--insecure"]
