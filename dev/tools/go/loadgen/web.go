package main

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// isWeb tells whether the first group calls over HTTP; all groups of a plan do then.
func (chosen *plan) isWeb() bool {
	return len(chosen.Groups) > 0 && chosen.Groups[0].Mode == "http"
}

// webClient keeps a connection for each caller open.
func webClient(chosen plan) *http.Client {
	callers := 0
	for _, group := range chosen.Groups {
		callers += group.Clients
	}
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: max(1, callers)}}
}

// post is one call over HTTP; the group's metadata are its headers.
func (run *load) post(ctx context.Context, group *group, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(
		ctx, http.MethodPost, "http://"+run.plan.Address+group.Method, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, value := range group.Metadata {
		request.Header.Set(name, value)
	}
	response, err := run.web.Do(request)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = status.Error(codes.Unknown, response.Status)
	}
	return answer, err
}
