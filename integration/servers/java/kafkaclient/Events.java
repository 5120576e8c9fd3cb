import io.cloudevents.CloudEvent;
import io.cloudevents.core.builder.CloudEventBuilder;
import io.cloudevents.core.message.Encoding;
import io.cloudevents.jackson.JsonFormat;
import io.cloudevents.kafka.CloudEventDeserializer;
import io.cloudevents.kafka.CloudEventSerializer;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.OffsetDateTime;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Events in Kafka by its stock client and the CloudEvents SDK: "write BROKER TOPIC"
 * writes one in binary mode, one in structured mode, and a record that is none; "read
 * BROKER TOPIC N" prints N events, a line for each attribute.
 */
public final class Events {
  public static void main(String[] args) throws Exception {
    if (args[0].equals("write")) {
      write(args[1], args[2]);
    } else {
      read(args[1], args[2], Integer.parseInt(args[3]));
    }
  }

  private static void write(String broker, String topic) throws Exception {
    for (Encoding encoding : List.of(Encoding.BINARY, Encoding.STRUCTURED)) {
      Map<String, Object> binding = new HashMap<>();
      binding.put("bootstrap.servers", broker);
      binding.put("acks", "all");
      binding.put(CloudEventSerializer.ENCODING_CONFIG, encoding);
      if (encoding == Encoding.STRUCTURED) {
        binding.put(CloudEventSerializer.EVENT_FORMAT_CONFIG, JsonFormat.CONTENT_TYPE);
      }
      CloudEventSerializer events = new CloudEventSerializer();
      events.configure(binding, false);
      CloudEvent event = CloudEventBuilder.v1().withId("java-" + encoding).withSource(URI.create("/java")).withType("t").withSubject("\u00e9")
          .withTime(OffsetDateTime.parse("2018-04-05T03:56:24Z")).withExtension("partitionkey", "k").withExtension("number", 7)
          .withData("text/plain", "hello".getBytes(StandardCharsets.UTF_8)).build();
      try (KafkaProducer<String, CloudEvent> p = new KafkaProducer<>(binding, new StringSerializer(), events)) {
        p.send(new ProducerRecord<>(topic, "k", event)).get();
      }
    }
    try (KafkaProducer<String, String> p = new KafkaProducer<>(Map.of("bootstrap.servers", broker), new StringSerializer(), new StringSerializer())) {
      p.send(new ProducerRecord<>(topic, "k", "native")).get();
    }
  }

  private static void read(String broker, String topic, int n) {
    Map<String, Object> config = Map.of("bootstrap.servers", broker, "group.id", topic + "-java", "auto.offset.reset", "earliest");
    try (KafkaConsumer<String, CloudEvent> c = new KafkaConsumer<>(config, new StringDeserializer(), new CloudEventDeserializer())) {
      c.subscribe(List.of(topic));
      while (n > 0) {
        for (ConsumerRecord<String, CloudEvent> r : c.poll(Duration.ofSeconds(1))) {
          CloudEvent e = r.value();
          System.out.println("key=" + r.key());
          for (String a : new TreeSet<>(e.getAttributeNames())) {
            System.out.println(a + "=" + e.getAttribute(a));
          }
          for (String x : new TreeSet<>(e.getExtensionNames())) {
            System.out.println(x + "=" + e.getExtension(x));
          }
          System.out.println("data=" + (e.getData() == null ? "none" : new String(e.getData().toBytes(), StandardCharsets.UTF_8)));
          n--;
        }
      }
    }
  }
}
