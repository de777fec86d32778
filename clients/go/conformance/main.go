// Command conformance runs rows of the conformance table with the Go client: JSON lines in, JSON lines out. The README
// of clients/conformance describes them.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hotslot.io/client-go/hotslot"
)

type command struct {
	Row      *row
	Load     *load
	Stop     bool
	Endpoint endpoint
	Pictures string
}

type endpoint struct {
	Address         string
	CAFile          string `json:"ca_file"`
	CertificateFile string `json:"certificate_file"`
	KeyFile         string `json:"key_file"`
	TokenFile       string `json:"token_file"`
}

type row struct {
	ID                 string
	Task               string
	Call               string
	Request            request
	Items              []request
	Repeat             int
	Order              string
	Window             int
	DeadlineSeconds    float64 `json:"deadline_seconds"`
	CancelAfterSeconds float64 `json:"cancel_after_seconds"`
	ModelVersion       string  `json:"model_version"`
	RoutingKey         string  `json:"routing_key"`
	Retry              *bool
	ReportAt           *int `json:"report_at"`
	Expected           map[string]any
}

type request struct {
	Model       string
	Picture     string
	PictureText string `json:"picture_text"`
	Padding     int
	Statements  []string
	Premise     string
	Addresses   []string
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	var running *callers
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) == 0 {
			if err != nil {
				return
			}
			continue
		}
		var read command
		if err := json.Unmarshal(line, &read); err != nil {
			fatal(err)
		}
		switch {
		case read.Row != nil:
			report(runRow(read))
		case read.Load != nil:
			running = begin(read)
			report(map[string]any{"load": "begun"})
		case read.Stop && running != nil:
			report(map[string]any{"load": running.end()})
			running = nil
		}
	}
}

var printing sync.Mutex

func report(line any) {
	printing.Lock()
	defer printing.Unlock()
	text, err := json.Marshal(line)
	if err != nil {
		fatal(err)
	}
	fmt.Printf("%s\n", text)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func runRow(read command) map[string]any {
	r := *read.Row
	answer := map[string]any{"row": r.ID, "language": "go"}
	client, err := open(read.Endpoint, r.Retry == nil || *r.Retry)
	if err != nil {
		fatal(err)
	}
	defer client.Close()
	tagged := hotslot.ContextWithModelVersion(context.Background(), r.ModelVersion)
	ctx, cancel := context.WithCancel(hotslot.ContextWithRoutingKey(tagged, r.RoutingKey))
	defer cancel()
	if r.DeadlineSeconds > 0 {
		ctx, cancel = context.WithTimeout(ctx, seconds(r.DeadlineSeconds))
		defer cancel()
	}
	if r.CancelAfterSeconds > 0 {
		ctx, cancel = context.WithCancel(ctx)
		timer := time.AfterFunc(seconds(r.CancelAfterSeconds), cancel)
		defer timer.Stop()
	}
	began := time.Now()
	seen := callFor(r.Task)(ctx, client, r, read.Pictures)
	took := time.Since(began).Seconds()
	answer["seen"], answer["seconds"] = seen, took
	answer["passed"] = hasPassed(r, seen, took)
	return answer
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

func open(at endpoint, retries bool) (*hotslot.Client, error) {
	transport := hotslot.WithPlaintext()
	withToken := hotslot.WithTokenInPlaintext
	if at.CAFile != "" {
		config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
		config.RootCAs.AppendCertsFromPEM(content(at.CAFile))
		if at.CertificateFile != "" {
			own, err := tls.LoadX509KeyPair(at.CertificateFile, at.KeyFile)
			if err != nil {
				return nil, err
			}
			config.Certificates = []tls.Certificate{own}
		}
		transport, withToken = hotslot.WithTLS(config), hotslot.WithToken
	}
	options := []hotslot.Option{transport}
	if at.TokenFile != "" {
		options = append(options, withToken(strings.TrimSpace(string(content(at.TokenFile)))))
	}
	if !retries {
		options = append(options, hotslot.WithoutRetries())
	}
	return hotslot.New(at.Address, options...)
}

func content(path string) []byte {
	read, err := os.ReadFile(path)
	if err != nil {
		fatal(err)
	}
	return read
}

func (r request) picture(folder string) []byte {
	var found []byte
	switch {
	case r.Picture != "":
		found = content(filepath.Join(folder, r.Picture))
	case r.PictureText != "":
		found = []byte(r.PictureText)
	case r.Padding == 0:
		return nil
	}
	return append(found, make([]byte, r.Padding)...)
}

func hasPassed(r row, seen map[string]any, took float64) bool {
	expected := r.Expected
	if results, isList := expected["results"].([]any); isList && r.Repeat > 1 {
		expected["results"] = slices.Repeat(results, r.Repeat)
	}
	if least, isGiven := expected["min_seconds"].(float64); isGiven && took < least {
		return false
	}
	if most, isGiven := expected["max_seconds"].(float64); isGiven && took > most {
		return false
	}
	delete(expected, "min_seconds")
	delete(expected, "max_seconds")
	text, err := json.Marshal(seen)
	if err != nil {
		fatal(err)
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		fatal(err)
	}
	return matches(any(expected), plain)
}

// matches compares each key of what is expected; lists one by one.
func matches(expected, seen any) bool {
	switch expected := expected.(type) {
	case map[string]any:
		found, isObject := seen.(map[string]any)
		if !isObject {
			return false
		}
		for key, value := range expected {
			if !matches(value, found[key]) {
				return false
			}
		}
		return true
	case []any:
		found, isList := seen.([]any)
		return isList && slices.EqualFunc(expected, found, matches)
	default:
		return expected == seen
	}
}
