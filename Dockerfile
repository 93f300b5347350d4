# syntax=docker/dockerfile:1
# The program alone, in an image without a shell, as user 65532.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" \
#                --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" -t audit-consumer .
#
# Its configuration is that of README.md, by environment variables. /logs (LOG_DIR) holds the day files and, in
# /logs/spool, the spool: mount one volume there for each instance, and never share it.
#
# Base images are named by tag. To pin them to what you have looked at, put the digest that
# `docker buildx imagetools inspect IMAGE` prints behind the tag: rust:1.95.0-bookworm@sha256:... Both are of Debian 12,
# so that the program finds the glibc that it was linked with. tests/image.rs keeps the versions here equal to those of
# rust-toolchain.toml and Cargo.toml.

FROM rust:1.95.0-bookworm AS chef
# The toolchain of this image, without what rust-toolchain.toml adds for development.
ENV RUSTUP_TOOLCHAIN=1.95.0
RUN cargo install --locked --version 0.1.78 cargo-chef
WORKDIR /build

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path /plan/recipe.json

FROM chef AS build
ARG SOURCE_DATE_EPOCH=0
COPY --from=plan /plan/recipe.json /plan/recipe.json
COPY .cargo/config.toml .cargo/config.toml
COPY deploy/image deploy/image
RUN deploy/image/build dependencies /plan/recipe.json
COPY . .
# The last image has nothing that makes a folder, so it gets this one, with its owner and rights.
RUN deploy/image/build program /image/audit-consumer \
    && install -d -m 0750 -o 65532 -g 65532 /image/logs

FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="audit-consumer" \
      org.opencontainers.image.description="Stores compliance audit events from Kafka in PostgreSQL, each exactly once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY --from=build /image/audit-consumer /usr/local/bin/audit-consumer
COPY --from=build --chown=65532:65532 /image/logs /logs
# By number, as Kubernetes' runAsNonRoot wants it.
USER 65532:65532
ENV LOG_FORMAT=json
# One volume: the spool is in it, so that a volume that is mounted here keeps both.
VOLUME ["/logs"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/audit-consumer", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/audit-consumer"]
CMD ["run"]
