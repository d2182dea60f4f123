// Allocates 40 MB of garbage a second for the time of its argument (ms) and keeps none of it: the heap fills up until it is collected.
import java.util.Scanner;

public class Garbage {
    static byte[] last;

    static void serveRequest() {
        last = new byte[400_000];
        last[123] = 1;
    }

    public static void main(String[] args) throws Exception {
        Scanner in = new Scanner(System.in);
        System.out.println("ready " + ProcessHandle.current().pid());
        in.nextLine();
        long end = System.nanoTime() + Long.parseLong(args[0]) * 1_000_000L;
        long served = 0;
        while (System.nanoTime() < end) {
            serveRequest();
            served++;
            Thread.sleep(10);
        }
        System.out.println("truth served " + served);
        System.out.println("done");
        in.nextLine();
    }
}
