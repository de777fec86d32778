package main

import (
	"context"
	"errors"
	"iter"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"

	addressv1 "hotslot.io/client-go/gen/address/v1"
	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
	"hotslot.io/client-go/hotslot"
)

// task is what differs between the two services, for a runner.
type task[Request, Item, Response any] struct {
	request func(request, string) Request
	item    func(Request) Item
	one     func(context.Context, *hotslot.Client, Request) (*Response, error)
	many    func(context.Context, *hotslot.Client, iter.Seq[Item], ...hotslot.StreamOption) iter.Seq2[hotslot.Outcome[Response], error]
	seen    func(*Response) map[string]any
}

var entailment = task[hotslot.PredictRequest, hotslot.PredictItem, entailmentv1.PredictResponse]{
	request: func(r request, pictures string) hotslot.PredictRequest {
		return hotslot.PredictRequest{
			Model: r.Model, Picture: r.picture(pictures), Statements: r.Statements, Premise: r.Premise,
		}
	},
	item: func(r hotslot.PredictRequest) hotslot.PredictItem { return hotslot.PredictItem{PredictRequest: r} },
	one: func(ctx context.Context, c *hotslot.Client, r hotslot.PredictRequest) (*entailmentv1.PredictResponse, error) {
		return c.Predict(ctx, r)
	},
	many: func(ctx context.Context, c *hotslot.Client, items iter.Seq[hotslot.PredictItem], opts ...hotslot.StreamOption) iter.Seq2[hotslot.PredictOutcome, error] {
		return c.PredictMany(ctx, items, opts...)
	},
	seen: func(response *entailmentv1.PredictResponse) map[string]any {
		labels := []string{}
		for _, result := range response.GetResults() {
			labels = append(labels, strings.ToLower(strings.TrimPrefix(result.GetLabel().String(), "LABEL_")))
		}
		return answer(labels, response.GetServedBy().GetModel(), response.GetServedBy().GetRevision())
	},
}

var tagging = task[hotslot.TagRequest, hotslot.TagItem, addressv1.PredictResponse]{
	request: func(r request, _ string) hotslot.TagRequest {
		return hotslot.TagRequest{Model: r.Model, Addresses: r.Addresses}
	},
	item: func(r hotslot.TagRequest) hotslot.TagItem { return hotslot.TagItem{TagRequest: r} },
	one: func(ctx context.Context, c *hotslot.Client, r hotslot.TagRequest) (*addressv1.PredictResponse, error) {
		return c.Tag(ctx, r)
	},
	many: func(ctx context.Context, c *hotslot.Client, items iter.Seq[hotslot.TagItem], opts ...hotslot.StreamOption) iter.Seq2[hotslot.TagOutcome, error] {
		return c.TagMany(ctx, items, opts...)
	},
	seen: func(response *addressv1.PredictResponse) map[string]any {
		labels := []string{}
		for _, result := range response.GetResults() {
			parts := []string{}
			for _, span := range result.GetSpans() {
				parts = append(parts, span.GetKind()+"="+span.GetText())
			}
			labels = append(labels, strings.Join(parts, "|"))
		}
		return answer(labels, response.GetServedBy().GetModel(), response.GetServedBy().GetRevision())
	},
}

func answer(labels []string, model, revision string) map[string]any {
	return map[string]any{"outcome": "answer", "labels": labels, "model": model, "revision": revision}
}

func failure(err error) map[string]any {
	seen := map[string]any{"outcome": "error", "code": "", "reason": "", "field": "", "retry_hint": false}
	if failed := (*hotslot.Error)(nil); errors.As(err, &failed) {
		_, hasHint := failed.RetryAfter()
		seen["code"], seen["reason"] = code.Code_name[int32(failed.Code)], failed.Reason
		seen["field"], seen["retry_hint"] = failed.Field, hasHint
	}
	return seen
}

type call func(ctx context.Context, client *hotslot.Client, r row, pictures string) map[string]any

func callFor(name string) call {
	if name == "address" {
		return tagging.call
	}
	return entailment.call
}

func (t task[Request, Item, Response]) call(ctx context.Context, c *hotslot.Client, r row, pictures string) map[string]any {
	if r.Call == "stream" {
		return t.stream(ctx, c, r, pictures)
	}
	given := t.request(r.Request, pictures)
	if r.ReportAt != nil && *r.ReportAt == 0 {
		report(map[string]any{"row": r.ID, "reached": 0})
	}
	response, err := t.one(ctx, c, given)
	if err != nil {
		return failure(err)
	}
	return t.seen(response)
}

func (t task[Request, Item, Response]) stream(ctx context.Context, c *hotslot.Client, r row, pictures string) map[string]any {
	given := make([]Request, len(r.Items))
	for n, one := range r.Items {
		given[n] = t.request(one, pictures)
	}
	count := len(given) * max(1, r.Repeat)
	items := func(yield func(Item) bool) {
		for n := range count {
			if !yield(t.item(given[n%len(given)])) {
				return
			}
		}
	}
	var options []hotslot.StreamOption
	if r.Window > 0 {
		options = append(options, hotslot.Window(r.Window))
	}
	if r.Order != "any" {
		options = append(options, hotslot.InOrder())
	}
	if r.ReportAt != nil && *r.ReportAt == 0 {
		report(map[string]any{"row": r.ID, "reached": 0})
	}
	results, outcomes, duplicated := make([]any, count), make([]error, count), 0
	arrived := 0
	for outcome, err := range t.many(ctx, c, items, options...) {
		if err != nil {
			for n, one := range outcomes {
				if one == err { // the stream's failure is no outcome that has arrived
					results[n] = nil
				}
			}
			return withResults(failure(err), results, duplicated)
		}
		if results[outcome.Index] != nil {
			duplicated++
		}
		outcomes[outcome.Index] = outcome.Err
		if outcome.Err != nil {
			results[outcome.Index] = failure(outcome.Err)
		} else {
			results[outcome.Index] = t.seen(outcome.Response)
		}
		if arrived++; r.ReportAt != nil && arrived == *r.ReportAt {
			report(map[string]any{"row": r.ID, "reached": arrived})
		}
	}
	return withResults(map[string]any{"outcome": "ended"}, results, duplicated)
}

func withResults(seen map[string]any, results []any, duplicated int) map[string]any {
	missing := 0
	for _, one := range results {
		if one == nil {
			missing++
		}
	}
	seen["results"], seen["duplicated"], seen["missing"] = results, duplicated, missing
	return seen
}
