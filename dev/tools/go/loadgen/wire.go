package main

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Field numbers of hotslot.entailment.v1.
const (
	streamItems    = 1
	itemID         = 1
	itemRequest    = 2
	resultResponse = 2
	resultError    = 3
	answerResults  = 1
	answerServedBy = 2
	servedRevision = 2
)

// result is a StreamResult.
type result struct {
	slot     int
	response []byte
	err      *status.Status
}

// item is a StreamPredictRequest with one item.
func item(id string, request []byte) []byte {
	inner := protowire.AppendTag(nil, itemID, protowire.BytesType)
	inner = protowire.AppendString(inner, id)
	inner = protowire.AppendTag(inner, itemRequest, protowire.BytesType)
	inner = protowire.AppendBytes(inner, request)
	outer := protowire.AppendTag(nil, streamItems, protowire.BytesType)
	return protowire.AppendBytes(outer, inner)
}

// results are those of a StreamPredictResponse.
func results(answer []byte) []result {
	var found []result
	fields(answer, func(_ protowire.Number, content []byte) {
		one := result{slot: -1}
		fields(content, func(number protowire.Number, value []byte) {
			switch number {
			case itemID:
				if slot, err := strconv.Atoi(string(value)); err == nil {
					one.slot = slot
				}
			case resultResponse:
				one.response = value
			case resultError:
				var message statuspb.Status
				_ = proto.Unmarshal(value, &message)
				one.err = status.FromProto(&message)
			}
		})
		found = append(found, one)
	})
	return found
}

// answered records which revision answered and, if asked, a digest of the serialized results.
func (row *outcome) answered(answer []byte, digests bool) {
	row.Code = 0
	hash := sha256.New()
	fields(answer, func(number protowire.Number, value []byte) {
		switch number {
		case answerResults:
			if digests {
				hash.Write(value)
			}
		case answerServedBy:
			fields(value, func(number protowire.Number, text []byte) {
				if number == servedRevision {
					row.Revision = string(text)
				}
			})
		}
	})
	if digests {
		row.Digest = hex.EncodeToString(hash.Sum(nil)[:8])
	}
}

// failed records a status and what its details say.
func (row *outcome) failed(why *status.Status) {
	row.Code, row.Detail = int(why.Code()), why.Message()
	for _, detail := range why.Details() {
		switch known := detail.(type) {
		case *errdetails.ErrorInfo:
			row.Reason = known.GetReason()
		case *errdetails.RetryInfo:
			row.Retry = known.GetRetryDelay().AsDuration().Seconds()
		}
	}
}

// fields calls a function with each length-delimited field of a message.
func fields(message []byte, visit func(protowire.Number, []byte)) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message[tag:])
			visit(number, value)
		}
		message = message[tag+size:]
	}
}
