import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.concurrent.atomic.AtomicInteger;

/** Story 3 in Java, as prices.c: a monitor held while a price is fetched, by eight threads, 400 times; `fixed`: not held. */
public class Prices {
    static final int REQUESTS = 400;
    static final Object priceMonitor = new Object();
    static final AtomicInteger next = new AtomicInteger();
    static final long[] prices = new long[64];

    static long fetchPrice() {
        try {
            Thread.sleep(3);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
        return 3;
    }

    static void lookupPrice(int item, boolean fixed) {
        long price = fixed ? fetchPrice() : 0;
        synchronized (priceMonitor) {
            prices[item % 64] = fixed ? price : fetchPrice();
        }
    }

    static void serve(boolean fixed) {
        for (int item; (item = next.getAndIncrement()) < REQUESTS; ) {
            lookupPrice(item, fixed);
        }
    }

    public static void main(String[] args) throws IOException, InterruptedException {
        boolean fixed = args.length > 0 && args[0].equals("fixed");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready " + ProcessHandle.current().pid());
        in.readLine();
        Thread[] threads = new Thread[8];
        for (int at = 0; at < threads.length; at++) {
            threads[at] = new Thread(() -> serve(fixed));
            threads[at].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("truth requests " + REQUESTS);
        System.out.println("done");
        in.readLine();
        System.exit(0);
    }
}
