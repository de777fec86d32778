package io.hotslot.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import io.hotslot.entailment.v1.PredictRequest;
import io.hotslot.entailment.v1.PredictResponse;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Flow;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(20)
class ItemStreamTest {
    private FakeServer server;

    @BeforeEach
    void start() throws IOException {
        server = new FakeServer();
    }

    @AfterEach
    void stop() {
        server.close();
    }

    private static Item<PredictRequest> item(int number) {
        return new Item<>("item " + number, PredictRequest.getDefaultInstance());
    }

    private static Iterable<Item<PredictRequest>> numbered(int count) {
        return () -> IntStream.range(0, count).mapToObj(ItemStreamTest::item).iterator();
    }

    private static StreamOptions window(int items) {
        return StreamOptions.DEFAULT.withWindow(items);
    }

    /** The outcomes by index; an item with two outcomes fails. */
    private static Map<Long, Outcome<PredictResponse>> collect(Stream<Outcome<PredictResponse>> outcomes) {
        Map<Long, Outcome<PredictResponse>> found = new TreeMap<>();
        try (outcomes) {
            outcomes.forEach(one -> {
                assertNull(found.put(one.index(), one), "an item has two outcomes");
                assertEquals("item " + one.index(), one.id());
                assertEquals(one.response() == null, one.failure() != null);
            });
        }
        return found;
    }

    private static void expectAnswers(Map<Long, Outcome<PredictResponse>> found, int count) {
        assertEquals(count, found.size());
        found.values().forEach(Outcome::get);
    }

    @Test
    void everyItemHasOneOutcomeWhenStreamsDrainAndBreak() {
        server.stream = attempt -> {
            if (attempt > 8) {
                return FakeServer::answerEach;
            }
            List<String> ids = new ArrayList<>();
            return (id, results) -> {
                ids.add(id);
                if (ids.size() != 5) {
                    return;
                }
                results.onNext(FakeServer.resultsOf(List.of(ids.get(3), ids.get(1)))); // three are left
                switch (attempt % 4) {
                    case 0 -> results.onError(FakeServer.thrown(Status.Code.UNAVAILABLE, "DRAINING"));
                    case 1 -> results.onError(Status.UNAVAILABLE.asException());
                    case 2 -> results.onError(Status.CANCELLED.asException());
                    default -> results.onCompleted();
                }
            };
        };
        try (HotslotClient client = server.client()) {
            expectAnswers(collect(client.predictMany(numbered(100), window(7))), 100);
            assertEquals(9, server.attempts.get());
        }
    }

    @Test
    void anItemThatIsRefusedForNowIsSentAgain() {
        server.stream = attempt -> (id, results) -> {
            if (!id.isEmpty()) {
                server.attempts.incrementAndGet();
                results.onNext(FakeServer.failureOf(
                        id, FakeServer.refusal(Status.Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", FakeServer.retryIn(1))));
            }
        };
        try (HotslotClient client = server.client()) {
            Map<Long, Outcome<PredictResponse>> found = collect(client.predictMany(numbered(1), window(4)));
            assertEquals("QUEUE_FULL", found.get(0L).failure().reason());
            assertEquals(1 + 5, server.attempts.get());
        }
    }

    @Test
    void anItemThatNoServerTakesIsFoundAmongTheOthers() {
        server.stream = attempt -> (id, results) -> {
            if (id.equals("5")) {
                results.onError(Status.RESOURCE_EXHAUSTED.asException());
            } else if (!results.isCancelled()) {
                FakeServer.answerEach(id, results);
            }
        };
        try (HotslotClient client = server.client()) {
            Map<Long, Outcome<PredictResponse>> found = collect(client.predictMany(numbered(20), window(8)));
            assertEquals(Status.Code.RESOURCE_EXHAUSTED, found.remove(5L).failure().code());
            expectAnswers(found, 19);
        }
    }

    @Test
    void outcomesMayComeInTheOrderOfTheItems() {
        server.stream = attempt -> {
            List<String> ids = new ArrayList<>();
            return (id, results) -> {
                ids.add(id);
                if (ids.size() == 3) {
                    Collections.reverse(ids);
                    results.onNext(FakeServer.resultsOf(List.copyOf(ids)));
                    ids.clear();
                }
            };
        };
        try (HotslotClient client = server.client();
                Stream<Outcome<PredictResponse>> outcomes =
                        client.predictMany(numbered(30), window(6).ordered())) {
            Iterator<Outcome<PredictResponse>> each = outcomes.iterator();
            for (long index = 0; index < 30; index++) {
                assertEquals(index, each.next().index());
            }
        }
    }

    @Test
    void noMoreItemsAreReadThanTheWindowHolds() {
        AtomicInteger read = new AtomicInteger();
        Iterable<Item<PredictRequest>> items = () -> IntStream.range(0, 200)
                .mapToObj(ItemStreamTest::item)
                .peek(one -> read.incrementAndGet())
                .iterator();
        try (HotslotClient client = server.client();
                Stream<Outcome<PredictResponse>> outcomes = client.predictMany(items, window(3))) {
            AtomicInteger taken = new AtomicInteger();
            outcomes.forEach(one -> {
                int most = taken.incrementAndGet() + 2 * 3; // the stream's window, and the outcomes on their way
                assertTrue(read.get() <= most, read + " read, " + taken + " taken");
            });
            assertEquals(200, taken.get());
        }
    }

    @Test
    void outcomesComeWhileTheNextItemIsAwaited() {
        SynchronousQueue<Integer> more = new SynchronousQueue<>();
        Iterator<Item<PredictRequest>> each = new Iterator<>() {
            private int number;

            @Override
            public boolean hasNext() {
                try {
                    return number == 0 || more.take() > 0;
                } catch (InterruptedException error) {
                    return false;
                }
            }

            @Override
            public Item<PredictRequest> next() {
                return item(number++);
            }
        };
        try (HotslotClient client = server.client();
                Stream<Outcome<PredictResponse>> outcomes = client.predictMany(() -> each, window(4))) {
            AtomicInteger taken = new AtomicInteger();
            outcomes.forEach(one -> {
                try {
                    more.put(taken.incrementAndGet() < 5 ? 1 : 0); // the next item comes after this outcome
                } catch (InterruptedException error) {
                    throw new AssertionError(error);
                }
            });
            assertEquals(5, taken.get());
        }
    }

    @Test
    void aClosedStreamEndsTheCall() throws InterruptedException {
        CountDownLatch ended = new CountDownLatch(1);
        server.stream = attempt -> (id, results) -> {
            if (id.equals("0")) {
                FakeServer.answerEach(id, results);
                new Thread(() -> {
                            while (!results.isCancelled()) {
                                Thread.onSpinWait();
                            }
                            ended.countDown();
                        })
                        .start();
            }
        };
        try (HotslotClient client = server.client()) {
            try (Stream<Outcome<PredictResponse>> outcomes = client.predictMany(numbered(1 << 30), window(4))) {
                assertEquals(0, outcomes.iterator().next().index());
            }
            assertTrue(ended.await(10, TimeUnit.SECONDS), "the server was told");
        }
    }

    @Test
    void anOutageThatLastsTooLongEndsTheStream() {
        server.stream = attempt -> (id, results) -> {
            if (!results.isCancelled()) {
                results.onError(FakeServer.thrown(Status.Code.UNAVAILABLE, "NOT_READY"));
            }
        };
        StreamOptions options = window(10).withMaxOutage(Duration.ofMillis(30));
        try (HotslotClient client = server.client();
                Stream<Outcome<PredictResponse>> outcomes = client.predictMany(numbered(10), options)) {
            Iterator<Outcome<PredictResponse>> each = outcomes.iterator();
            for (int n = 0; n < 10; n++) {
                assertEquals("NOT_READY", each.next().failure().reason());
            }
            HotslotException error = assertThrows(HotslotException.Unavailable.class, each::hasNext);
            assertEquals("NOT_READY", error.reason());
            assertTrue(server.attempts.get() >= 5, server.attempts + " attempts");
        }
    }

    @Test
    void aFailureForGoodEndsTheStreamAtOnce() {
        server.stream = attempt -> (id, results) -> {
            if (!results.isCancelled()) {
                results.onError(FakeServer.thrown(Status.Code.UNAUTHENTICATED, "TOKEN_UNKNOWN"));
            }
        };
        try (HotslotClient client = server.client()) {
            Stream<Outcome<PredictResponse>> outcomes = client.predictMany(numbered(10), window(10));
            assertThrows(HotslotException.Unauthenticated.class, () -> collect(outcomes));
            assertEquals(1, server.attempts.get());
        }
    }

    @Test
    void aDeadlineGivesEveryItemItsOutcome() {
        server.stream = attempt -> (id, results) -> {};
        try (HotslotClient client = server.client();
                Stream<Outcome<PredictResponse>> outcomes =
                        client.withDeadline(Duration.ofMillis(20)).predictMany(numbered(100), window(5))) {
            Iterator<Outcome<PredictResponse>> each = outcomes.iterator();
            for (int n = 0; n < 5; n++) {
                assertInstanceOf(HotslotException.DeadlineExceeded.class, each.next().failure());
            }
            assertThrows(HotslotException.DeadlineExceeded.class, each::hasNext);
        }
    }

    @Test
    void aClosedClientEndsItsStreams() {
        CountDownLatch begun = new CountDownLatch(1);
        server.stream = attempt -> (id, results) -> begun.countDown();
        HotslotClient client = server.client();
        new Thread(() -> {
                    try {
                        begun.await();
                    } catch (InterruptedException error) {
                        throw new AssertionError(error);
                    }
                    client.close();
                })
                .start();
        Stream<Outcome<PredictResponse>> outcomes = client.predictMany(numbered(3), window(3));
        assertThrows(HotslotException.class, () -> collect(outcomes));
    }

    @Test
    void aResultWithoutAnOutcomeIsAFailure() {
        server.stream = attempt -> (id, results) -> results.onNext(io.hotslot.entailment.v1.StreamPredictResponse
                .newBuilder()
                .addResults(io.hotslot.entailment.v1.StreamResult.newBuilder().setItemId(id))
                .build());
        try (HotslotClient client = server.client()) {
            Map<Long, Outcome<PredictResponse>> found = collect(client.predictMany(numbered(1), window(1)));
            assertInstanceOf(HotslotException.Failed.class, found.get(0L).failure());
        }
    }

    @Test
    void aRefusalThatLastsLongerThanTheDeadlineIsTheOutcome() {
        server.stream = attempt -> (id, results) -> {
            if (!id.isEmpty()) {
                results.onNext(FakeServer.failureOf(
                        id, FakeServer.refusal(Status.Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", FakeServer.retryIn(999))));
            }
        };
        try (HotslotClient client = server.client()) {
            HotslotClient hurried = client.withDeadline(Duration.ofMillis(900));
            Map<Long, Outcome<PredictResponse>> found = collect(hurried.predictMany(numbered(1), window(1)));
            assertEquals("QUEUE_FULL", found.get(0L).failure().reason());
        }
    }

    @Test
    void noItemsNeedNoServer() {
        try (HotslotClient client = server.client()) {
            expectAnswers(collect(client.predictMany(numbered(0), window(3))), 0);
            assertEquals(0, server.attempts.get());
        }
    }

    @Test
    void whatTheItemsThrowComesAfterTheOutcomes() {
        Iterable<Item<PredictRequest>> items = () -> IntStream.range(0, 10)
                .mapToObj(number -> {
                    if (number == 3) {
                        throw new IllegalStateException("mine");
                    }
                    return item(number);
                })
                .iterator();
        try (HotslotClient client = server.client();
                Stream<Outcome<PredictResponse>> outcomes = client.predictMany(items, window(8))) {
            Iterator<Outcome<PredictResponse>> each = outcomes.iterator();
            for (int n = 0; n < 3; n++) {
                each.next().get();
            }
            assertEquals("mine", assertThrows(IllegalStateException.class, each::hasNext).getMessage());
        }
    }

    @Test
    void aSubscriberGetsNoMoreThanItRequests() throws InterruptedException {
        LinkedBlockingQueue<Object> seen = new LinkedBlockingQueue<>();
        Flow.Subscription[] subscription = new Flow.Subscription[1];
        Flow.Subscriber<Outcome<PredictResponse>> slow = new Flow.Subscriber<>() {
            @Override
            public void onSubscribe(Flow.Subscription given) {
                subscription[0] = given;
            }

            @Override
            public void onNext(Outcome<PredictResponse> outcome) {
                seen.add(outcome.index());
            }

            @Override
            public void onError(Throwable error) {
                seen.add(error);
            }

            @Override
            public void onComplete() {
                seen.add("complete");
            }
        };
        try (HotslotClient client = server.client()) {
            client.predictMany(client.parts().publish(numbered(5)), window(2)).subscribe(slow);
            for (long index = 0; index < 5; index++) {
                assertNull(seen.poll(5, TimeUnit.MILLISECONDS), "nothing was requested");
                subscription[0].request(1);
                assertEquals(index, seen.take());
            }
            assertEquals("complete", seen.take());

            client.predictMany(client.parts().publish(numbered(5)), window(2)).subscribe(slow);
            subscription[0].request(0);
            assertInstanceOf(IllegalArgumentException.class, seen.take());
        }
    }
}
