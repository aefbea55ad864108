# The image of pgproxy: the binary, root certificates, and a directory for the
# tailnet node's state. It runs as a numeric user, for runAsNonRoot.

FROM golang:1.26.8-bookworm AS build
WORKDIR /src

# The modules first: they change less often than the code.
COPY go.mod go.sum ./
RUN go mod download

# With .git, so that "pgproxy version" and the node tell the commit. The SQL
# parser is C: the binary needs a C library of the same age in the final image.
COPY . .
RUN CGO_ENABLED=1 go build -trimpath -ldflags='-s -w' -o /out/pgproxy . \
 && mkdir -p /out/state

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/pgproxy /usr/local/bin/pgproxy

# A lost state directory is a new node in the tailnet.
COPY --from=build --chown=65532:65532 --chmod=0700 /out/state /var/lib/pgproxy
ENV TS_STATE_DIR=/var/lib/pgproxy
VOLUME /var/lib/pgproxy

USER 65532:65532
ENTRYPOINT ["/usr/local/bin/pgproxy"]
