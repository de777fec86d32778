package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// options is what the command line says.
type options struct {
	addr           string
	service        string
	userAgent      string
	connectTimeout time.Duration
	rpcTimeout     time.Duration
	headers        headerFlag
	verbose        bool
	gzip           bool

	tls           bool
	tlsNoVerify   bool
	tlsCACert     string
	tlsClientCert string
	tlsClientKey  string
	tlsServerName string
}

// headerFlag collects repeated `-rpc-header "name: value"`.
type headerFlag metadata.MD

func (h headerFlag) String() string { return fmt.Sprint(metadata.MD(h)) }

func (h headerFlag) Set(text string) error {
	name, value, found := strings.Cut(text, ":")
	if !found || strings.TrimSpace(name) == "" {
		return fmt.Errorf("%q has not the form name: value", text)
	}
	metadata.MD(h).Append(strings.TrimSpace(name), strings.TrimSpace(value))
	return nil
}

// parse reads the command line and refuses what contradicts itself.
func parse(arguments []string, messages io.Writer) (options, error) {
	chosen := options{headers: headerFlag{}}
	flags := flag.NewFlagSet("healthcheck", flag.ContinueOnError)
	flags.SetOutput(messages)
	flags.StringVar(&chosen.addr, "addr", "", "(required) address to check, host:port or unix:/path")
	flags.StringVar(&chosen.service, "service", "", "service to ask about (default: the server as a whole)")
	flags.StringVar(&chosen.userAgent, "user-agent", defaultUserAgent, "user-agent header")
	flags.DurationVar(&chosen.connectTimeout, "connect-timeout", defaultTimeout, "time limit of the connection")
	flags.DurationVar(&chosen.rpcTimeout, "rpc-timeout", defaultTimeout, "time limit of the call")
	flags.Var(chosen.headers, "rpc-header", "metadata to send, name: value; may be repeated")
	flags.BoolVar(&chosen.verbose, "v", false, "say how long it took")
	flags.BoolVar(&chosen.gzip, "gzip", false, "compress the request")
	flags.BoolVar(&chosen.tls, "tls", false, "use TLS")
	flags.BoolVar(&chosen.tlsNoVerify, "tls-no-verify", false, "with -tls: do not check the server's certificate (insecure)")
	flags.StringVar(&chosen.tlsCACert, "tls-ca-cert", "", "with -tls: file of trusted certificates")
	flags.StringVar(&chosen.tlsClientCert, "tls-client-cert", "", "with -tls: file of the client's certificate")
	flags.StringVar(&chosen.tlsClientKey, "tls-client-key", "", "with -tls: file of the client's key")
	flags.StringVar(&chosen.tlsServerName, "tls-server-name", "", "with -tls: name that the server's certificate must have")
	if err := flags.Parse(arguments); err != nil {
		return options{}, err
	}
	return chosen, chosen.validate(flags.Args())
}

func (o options) validate(rest []string) error {
	usesTLSFlag := o.tlsNoVerify || o.tlsCACert != "" || o.tlsClientCert != "" || o.tlsClientKey != "" || o.tlsServerName != ""
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case o.addr == "":
		return errors.New("-addr not specified")
	case o.connectTimeout <= 0:
		return errors.New("-connect-timeout must be greater than zero")
	case o.rpcTimeout <= 0:
		return errors.New("-rpc-timeout must be greater than zero")
	case !o.tls && usesTLSFlag:
		return errors.New("specified a -tls-… flag without -tls")
	case (o.tlsClientCert == "") != (o.tlsClientKey == ""):
		return errors.New("-tls-client-cert and -tls-client-key go together")
	case o.tlsNoVerify && (o.tlsCACert != "" || o.tlsServerName != ""):
		return errors.New("-tls-no-verify contradicts -tls-ca-cert and -tls-server-name")
	}
	return nil
}

func transportCredentials(chosen options) (credentials.TransportCredentials, error) {
	if !chosen.tls {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{ServerName: chosen.tlsServerName, InsecureSkipVerify: chosen.tlsNoVerify}
	if chosen.tlsClientCert != "" {
		pair, err := tls.LoadX509KeyPair(chosen.tlsClientCert, chosen.tlsClientKey)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if chosen.tlsCACert != "" {
		content, err := os.ReadFile(chosen.tlsCACert)
		if err != nil {
			return nil, fmt.Errorf("-tls-ca-cert: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("-tls-ca-cert: no certificate in %q", chosen.tlsCACert)
		}
	}
	return credentials.NewTLS(config), nil
}

func hasScheme(addr string) bool {
	return strings.HasPrefix(addr, "unix:") || strings.Contains(addr, "://")
}
