from tests.unit.test_fold_properties import *
def show(item):
    if isinstance(item, Skip): return f"skip {item.position.offset}"
    if isinstance(item, Retry): return f"retry {item.position.offset} as {show(item.item)}"
    o=item.record.position.offset
    if isinstance(item, Accepted):
        e=item.event; return f"{o}: {type(e).__name__} id={e.envelope.id} seq={e.envelope.sequence} {getattr(e,'outcome','')}"
    return f"{o}: broken id={item.event_id} seq={item.sequence}"
@settings(max_examples=6000)
@given(st.data(), logs(decisions=True))
def test_cut(data, log):
    whole, cut = StoredStream(), StoredStream()
    counted = asdict(whole.fold(*log).counts)
    cuts=data.draw(cuts_of(len(log)))
    counted_in_parts = asdict(fold_in_batches(cut, log, cuts))
    msg="\n".join(map(show,log))+f"\n{cuts}\nwhole {whole.states()} {whole.open} {whole.parked} {whole.history.next_sequence} {whole.history.passed} {counted}\ncut   {cut.states()} {cut.open} {cut.parked} {cut.history.next_sequence} {counted_in_parts}"
    for p in set(whole.set_aside)|set(cut.set_aside):
        a,b=whole.set_aside.get(p),cut.set_aside.get(p)
        if a!=b: msg+=f"\nDIFF {p} {a}\n {b}"
    if not(content(cut) == content(whole) and counted_in_parts == counted):
        raise AssertionError(msg) from None
