// Package hotslot calls hotslot servers: it judges statements about pictures and tags addresses, one request at a
// time or as a stream of any length.
//
//	client, err := hotslot.New("dns:///models.internal:50051", hotslot.WithTLS(nil), hotslot.WithToken(token))
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	response, err := client.Predict(ctx, hotslot.PredictRequest{Picture: picture, Statements: []string{"a red square"}})
//	if failure := (*hotslot.Error)(nil); errors.As(err, &failure) {
//		log.Print(failure.Reason, failure.Field)
//	}
//
// Calls are pure, so all of them are sent again where that may help: unary calls by gRPC, as the service config says
// that all clients of hotslot share, and the items of a stream by this package. A swap of the model, a trial, a
// restart of one of several servers and a short overload are not seen by the caller.
//
// While a new revision is rolled out as a canary, [ContextWithRoutingKey] keeps the calls of a key on one revision, and
// [ContextWithModelVersion] names the version that is to answer.
package hotslot
