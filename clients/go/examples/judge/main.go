// Command judge asks a server whether pictures show what a sentence says.
//
//	go run hotslot.io/client-go/examples/judge -address 127.0.0.1:50051 -statement "a red square" *.png
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"hotslot.io/client-go/hotslot"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	address := flag.String("address", "127.0.0.1:50051", "target, for example dns:///models.internal:50051")
	statement := flag.String("statement", "there is a red circle", "what the pictures may show")
	tls := flag.Bool("tls", false, "connect over TLS")
	model := flag.String("model", "", "name of the served model, if there are several")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	transport := hotslot.WithPlaintext()
	if *tls {
		transport = hotslot.WithTLS(nil)
	}
	client, err := hotslot.New(*address, transport, hotslot.WithModel(*model))
	if err != nil {
		return err
	}
	defer client.Close()

	pictures := func(yield func(hotslot.PredictItem) bool) {
		for _, path := range flag.Args() {
			picture, err := os.ReadFile(path)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				continue
			}
			request := hotslot.PredictRequest{Picture: picture, Statements: []string{*statement}}
			if !yield(hotslot.PredictItem{ID: path, PredictRequest: request}) {
				return
			}
		}
	}
	for outcome, err := range client.PredictMany(ctx, pictures, hotslot.InOrder()) {
		switch {
		case err != nil:
			return err
		case outcome.Err != nil:
			fmt.Printf("%s\t%v\n", outcome.ID, outcome.Err)
		default:
			result := outcome.Response.GetResults()[0]
			label := strings.TrimPrefix(result.GetLabel().String(), "LABEL_")
			fmt.Printf("%s\t%s\t%.3f\n", outcome.ID, label, result.GetScores().GetYes())
		}
	}
	return nil
}
