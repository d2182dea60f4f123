# Perl: waits in a comparison called back by sort.
#
# go: strings are matched and sorted, with short sleeps; done: it sleeps in `select`, ten calls deep, in a sort.
use strict;
use warnings;

$| = 1;
alarm 600;
print "ready $$\n";
exit 0 unless (<STDIN> // '') eq "go\n";
for my $round (1 .. 300) {
    my @sorted = sort { $a cmp $b } map { s/(\d)/<$1>/gr } 1 .. 200;
    select undef, undef, undef, 0.001;
}
print "done\n";

sub deep {
    my ($depth) = @_;
    if ($depth == 0) {
        my $line = <STDIN>;
        exit 0;
    }
    deep($depth - 1);
}

my @never = sort { deep(10); $a <=> $b } 2, 1;
