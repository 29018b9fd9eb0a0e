# A static binary in an empty image.
#
#   docker build -t couchdb-howler .
#   docker run --rm -p 3000:3000 -e HOWLER_COUCHDB_URL=http://admin:secret@couchdb:5984 couchdb-howler

FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
# The target's name depends on the machine: x86_64 or aarch64.
RUN target="$(uname -m)-unknown-linux-musl" \
    && rustup target add "$target" \
    && mkdir -p tests && touch tests/tests.rs \
    && cargo build --release --locked --bin couchdb-howler --target "$target" \
    && cp "target/$target/release/couchdb-howler" /couchdb-howler

FROM scratch
LABEL org.opencontainers.image.title="couchdb-howler" \
      org.opencontainers.image.description="Tells WebSocket clients which CouchDB databases changed" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /couchdb-howler /couchdb-howler
# Nobody: there are no names in an empty image.
USER 65534:65534
EXPOSE 3000
# Asks the port that the environment names; options in the arguments of `docker run` are not seen by it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/couchdb-howler", "healthcheck"]
ENTRYPOINT ["/couchdb-howler"]
