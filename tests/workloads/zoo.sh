# A shell that waits for a child, eight functions deep.
#
# go: a hundred children are run; done: it waits for one that sleeps.
echo "ready $$"
read -r word
[ "$word" = go ] || exit 0
for i in $(seq 100); do
    text=$(echo "$i" | tr 0-9 a-j)
done
echo "done"
deep() {
    if [ "$1" = 0 ]; then
        read -r word
        kill "$child"
        exit 0
    else
        deep $(($1 - 1))
    fi
    return "$?"
}
sleep 600 &
child=$!
deep 8
