package stockstream;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * Bars of one second and, over the last 300 seconds, mean, VWAP, volume and deviation of the returns of each symbol; a row for each symbol and second.
 *
 * <p>The state is a store of bars with a changelog, cached: a bar is written to the changelog on commit, and not with every tick.
 *
 * <p>Arguments: bootstrap servers, input topic, output topic, application id, state directory.
 */
public final class Rolling {
    static final int WINDOW = 300;
    static final int KEPT = 512;
    static final String STORE = "bars";

    /** A tick as it is in the topic; what we do not use is skipped. */
    @com.fasterxml.jackson.annotation.JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Tick {
        public String symbol;
        public long event_time;
        public double price;
        public long size;
    }

    /** What goes out. */
    public static final class Row {
        public String symbol;
        public long second;
        public double open, high, low, close;
        public long volume;
        public double mean_5m, vwap_5m;
        public long volume_5m;
        public Double return_std_5m;
    }

    /** The newest 300 seconds of one symbol: price, volume and notional of each, and their running sums. */
    static final class Ring {
        long second = -1, begun = -1;
        double open, high, low, close, notional;
        long volume;
        final double[] price = new double[WINDOW + 1], money = new double[WINDOW + 1];
        final long[] size = new long[WINDOW + 1];

        Row add(Tick tick) {
            long at = tick.event_time / 1000;
            Row row = null;
            if (at > second) {
                if (second >= 0) {
                    row = close(tick.symbol);
                    fill(at);
                } else {
                    begun = at;
                }
                second = at;
                open = high = low = tick.price;
                volume = 0;
                notional = 0;
            }
            high = Math.max(high, tick.price);
            low = Math.min(low, tick.price);
            close = tick.price;
            volume += tick.size;
            notional += tick.price * tick.size;
            return row;
        }

        /** The seconds without a tick before {@code at} carry the price. */
        void fill(long at) {
            for (long s = Math.max(second + 1, at - WINDOW); s < at; s++) {
                int i = (int) (s % (WINDOW + 1));
                price[i] = close;
                size[i] = 0;
                money[i] = 0;
            }
        }

        void keep() {
            int now = (int) (second % (WINDOW + 1));
            price[now] = close;
            size[now] = volume;
            money[now] = notional;
        }

        Row close(String symbol) {
            keep();
            long first = Math.max(begun, second - WINDOW + 1);
            double sum = 0, worth = 0, returns = 0, squares = 0;
            long shares = 0;
            int count = 0;
            double before = first > begun ? price[(int) ((first - 1) % (WINDOW + 1))] : 0;
            for (long s = first; s <= second; s++) {
                int i = (int) (s % (WINDOW + 1));
                double p = price[i];
                sum += p;
                shares += size[i];
                worth += money[i];
                if (before > 0) {
                    double r = p == before ? 0 : Math.log(p / before);
                    returns += r;
                    squares += r * r;
                    count++;
                }
                before = p;
            }
            Row row = new Row();
            row.symbol = symbol;
            row.second = second;
            row.open = open;
            row.high = high;
            row.low = low;
            row.close = close;
            row.volume = volume;
            row.mean_5m = sum / (second - first + 1);
            row.vwap_5m = shares > 0 ? worth / shares : Double.NaN;
            row.volume_5m = shares;
            row.return_std_5m = count > 1 ? Math.sqrt(Math.max(0, (squares - returns * returns / count) / (count - 1))) : null;
            return row;
        }
    }

    /** The rings are objects on the heap; every tick also puts its second's bar into the store, from which they are built again. */
    static final class Bars implements Processor<String, Tick, String, Row> {
        private ProcessorContext<String, Row> context;
        private KeyValueStore<String, byte[]> store;
        private final Map<String, Ring> rings = new HashMap<>();

        @Override
        public void init(ProcessorContext<String, Row> context) {
            this.context = context;
            this.store = context.getStateStore(STORE);
            Map<String, TreeMap<Long, ByteBuffer>> stored = new HashMap<>();
            try (KeyValueIterator<String, byte[]> bars = store.all()) {
                while (bars.hasNext()) {
                    KeyValue<String, byte[]> bar = bars.next();
                    ByteBuffer data = ByteBuffer.wrap(bar.value);
                    stored.computeIfAbsent(bar.key.substring(0, bar.key.lastIndexOf('/')), symbol -> new TreeMap<>()).put(data.getLong(0), data);
                }
            }
            stored.forEach((symbol, bars) -> rings.put(symbol, restored(bars)));
        }

        private static Ring restored(TreeMap<Long, ByteBuffer> bars) {
            Ring ring = new Ring();
            for (ByteBuffer bar : bars.values()) {
                if (ring.second >= 0) {
                    ring.fill(bar.getLong(0));
                }
                ring.second = bar.getLong(0);
                ring.begun = bar.getLong(8);
                ring.open = bar.getDouble(16);
                ring.high = bar.getDouble(24);
                ring.low = bar.getDouble(32);
                ring.close = bar.getDouble(40);
                ring.notional = bar.getDouble(48);
                ring.volume = bar.getLong(56);
                ring.keep();
            }
            return ring;
        }

        @Override
        public void process(Record<String, Tick> record) {
            Tick tick = record.value();
            if (tick == null || tick.symbol == null) {
                return;
            }
            Ring ring = rings.computeIfAbsent(tick.symbol, symbol -> new Ring());
            Row row = ring.add(tick);
            byte[] bar = new byte[64];
            ByteBuffer.wrap(bar).putLong(ring.second).putLong(ring.begun).putDouble(ring.open).putDouble(ring.high).putDouble(ring.low)
                .putDouble(ring.close).putDouble(ring.notional).putLong(ring.volume);
            store.put(tick.symbol + "/" + ring.second % KEPT, bar);
            if (row != null) {
                context.forward(new Record<>(tick.symbol, row, record.timestamp()));
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        ObjectMapper mapper = new ObjectMapper(new JsonFactory());
        ObjectReader reader = mapper.readerFor(Tick.class);
        ObjectWriter writer = mapper.writerFor(Row.class);
        Serde<Tick> ticks = Serdes.serdeFrom((topic, tick) -> null, (topic, data) -> {
            try {
                return data == null ? null : reader.readValue(data);
            } catch (java.io.IOException error) {
                throw new RuntimeException(error);
            }
        });
        Serde<Row> rows = Serdes.serdeFrom((topic, row) -> {
            try {
                return writer.writeValueAsBytes(row);
            } catch (java.io.IOException error) {
                throw new RuntimeException(error);
            }
        }, (topic, data) -> null);
        StoreBuilder<KeyValueStore<String, byte[]>> store = Stores
            .keyValueStoreBuilder(Stores.inMemoryKeyValueStore(STORE), Serdes.String(), Serdes.ByteArray())
            .withCachingEnabled()
            .withLoggingEnabled(Map.of());

        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(store);
        builder.stream(arguments[1], Consumed.with(Serdes.String(), ticks))
            .process(Bars::new, STORE)
            .to(arguments[2], Produced.with(Serdes.String(), rows));

        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[3]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[4]);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 5000);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64 * 1024 * 1024);
        settings.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
        settings.put(StreamsConfig.producerPrefix("linger.ms"), 20);
        settings.put(StreamsConfig.producerPrefix("batch.size"), 262144);
        settings.put(StreamsConfig.producerPrefix("acks"), "all");
        settings.put(StreamsConfig.consumerPrefix("max.poll.records"), 5000);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        CountDownLatch done = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close(java.time.Duration.ofSeconds(10));
            done.countDown();
        }));
        streams.start();
        done.await();
    }
}
