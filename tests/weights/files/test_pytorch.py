import base64
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet_tf.errors import WeightFileError
from refinedet_tf.weights.files.pytorch import is_pytorch_file, read_state_dict
from tests.weights.pytorch_writer import LEGACY_START, STORAGE_TYPES, Call, Storage, Tensor, tensor, write_checkpoint

BOTH_FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])

# {"epoch": 1, "state_dict": the one of GOLDEN_TENSORS} as torch.save of PyTorch 2.13.0 wrote it, zlib, base 85.
GOLDEN_ZIP = (
    "c-qBQ%WoS+7$3hK=hauJ3!#J*ic?z0??=h2OIQe7sI#T8q=jW|Z|$YdI^XU%QIR4=LMe|^Qz68u;>dr%4bdY<4%{js!2xmN$O*yB?#A8OG;gG?"
    "G}+jm-($X+@B5}A1cC@fqiD-BfKH%>yf9Z8uPazdF5PPJ+!3_kdDi@^fD%%O0Mw;+tqDHCC&kDo6DwGi>sk$izgBCvT51hzZQYDrG3u(J)@R8t"
    "F$j!_5KKs60$5SCMiWD*hTBH1nUp(NYnd_GP^%rSRhO}<n{7j0&cq;`NJtS&qHQP*6(Tky#<$uEzG{CNgQ(;qb5hVF1<1R$)Pb1b$Iv@3Ai=*5"
    "eS&Wt`oCyW2Ll)eMK~gnNT8~wm~ga7G@6m7&5?#<O$&S6!JeSlAshP?hLa-1r9Lvz=;*qpH{?ZC(cu)sk%6aej%OT>VaoBW&2bvTb0UmLy)KSr"
    "#enA-iY$!U6lWZY7bwMxHpN*CFNu(lj+2RcXHl*yxYkrn85>INmRg4~o63pQ<+k4F2I`!}o`aVOyAQ*8!ag=;vtGcE6k*)jP{O2}OKp>or5Im%"
    "NE2ijLx%ba2>v^e6?{VA4&-c>Jcfb@MeC55Ev=?PiE%ThKiajjMOlE0gffcZm3hjv4iogxq)j)4VOoS4>(H1@g`6e0<QOV99UM0=1cl%_yh=kf"
    "YvW$Sz>Dy@M9+HlCOs?Z0=&UE;duM&uAMo{P7&U;BQH3Szf5W0vT5JOa7BcQ)I%mNDTcDBV%328ZH{qwMhrwodbZuEw$!fhRZF-8@7SAi&9y1-"
    "Vt7vk>2vGD`=7yr2-iESaKmyy&K_21!ommE?;lDumqA{IkF1<oRt=M+At-|1G|g%!SrH=9zrVck?*o!0bX2x22t#PXDG14%ZDUcvvO~smr7d+~"
    "uTPrlfB)CRPw8^$*j_)5%A5L5=F3V;Yv_xrj(IMBFbjnoH88ybfBK1pe@6p@=#pcgdK;^4TE}>9^1w^Co|cAjOQjyxCx1Uhk92rP4}ECHRh7q6"
    "JU4MD0|>26(?K2Foe%#)C8N7Im~uNv^V~&r7=8Pp`r5Cf>b~_ePgp;DSp7rBKlg;!pZ`DfX$;80Ml)ork@4*e^>gy>9~*Hi@ptx<bo(jr+&Q#A"
    "eV>#0^qxSk03jy}BTif%o{8KZA^(r;;^VB_N0H}7_u%8l>5(6(#{IF{gP^0olLqJ3DDm9X;mVH_|DYA`f3DwK*?s@}(WK*{TmH)jH<67|<)802"
    "uI*lbhf!{`0a(j7RYM~k;1h*jEM=|EbE$nBNu|rhVyTeI=Cj#CIg?7~a@lk)pGv3F*<vnREabAeLMBt9E`RF`f1Dsb5|&FJHQV*+ZlMEPoU`|6"
    "FV@}uh8Wz@AbNbu^-{PSSe&8Qcto+KYkFDSEohKoITk|R*5?Jgt5+Wb{yK!1p5;Zl>kf;IhZ$sg@5pahWM=Pf;}Hg#-G?TN%z2USdgjrLGRV9a"
    ">8?O5@;eq;@FLxHg+-=%7-Z3lbXNlw`4x*Sd6DjH?q}B-Lu~EvLft7g%s}sTp^s1giVzN;cjlfBTyS05*!M=jewTVT8()~#dGwQ$we}q}6t*#g"
    ")_i;Je<r?CX8"
)
GOLDEN_LEGACY = (
    "c-nQ8*;3R%6ox06VP=S+DDErng9~PM#tlS7F|5HQE*LYJmPA7`C+T2m)l_kVqR-%kmp+B%>-Y#(dEx0KAfdw4bgH`3=llPhbGldguY&dW+r*!N"
    "w?F2N46X9hzti~aK&qhhrBbQ3>rh8`EOmvrp6S@Y;RdA_-&iK47Ey`aGBq3cbw$8M`k_r!&-_R{NOvGpP`Yr@GaQ#fm&7Y+oS8O-tdvnQjN#Zz"
    "kdrdLzoE(YleVK9z)4(y^r%LO+A?(typB#RqEj^D3A1jCxTH0XZv;pW%1kbc0q=>qWT2i-9alGoRG*rbC#WuI`li)VDX~4rRaZ&^WD5l)7f3j+"
    "wnQKoh6oduqtS(MQGmR%8}~FS)mo!0R*Pk^R1u*&_!hnGgCOxU6n4!^DT!Z$9*J9n-Y*98vzx*m8Tx`RZJL?~dks`Haz>n35z7@M?lVGCe?;2P"
    "NC!gFK?;XtIIQ$wnCsiNX)meE1k-*bktjBXOZ5^Qjflr0;&Dbi5fV>QI3>e?vTF-*MRVcwPQY5J0%s!N*$8-!0ndlP3luKOP*D0Y%=VYnrbcyx"
    "cq(-@{T*q+U<i&fJcWhdOz@?6I?5GsScJ={#i7;})EXQNHLg+^lHpp|X|85_ZO22jn4H#fwO+455jk1pl$htV#D9Xa#7XH-Pzjk;3N;z(VWV26"
    "PGC6ZbkhFc35_iRjbcq~6o)Ht9R>0zaATfv*Wf05+zR2hDU8T48nmTnXxOcACo-GJ8jDzW=cSC4S%Yzw;Cmr!g2H_n9w>R%O>bC-7HcpW^Ex&W"
    "E^ius7#AsuRm_MKRdFh+;xrSP2}Ncp%*imXbhD$cx!N+J#07bWqqMn0fQ6WmamR03WYfl@SYgVIdZ}E3$5DZwY$@<l3W^NR)`Q9O&+tNqmwpEp"
    "13%dDRBLHegIB?ORl&s+yzYP&oZ^ieswwfF=QY`tvdFHKgp<J~bvK`M&eKWOGfC&SE2)dKNiCU6Dt$hwRNZ8VPsM-#=c^-ZY@c(n-I>wt@!Ym~"
    "Ha267)F}ROtm61Sn%@@7c<kz9ms(d8pWEW=*T}%ne;ekAr~"
)
GOLDEN_TENSORS = {
    "weight": np.ones(2, "f4"),
    "bias": np.zeros(2, "f4"),
    "running_mean": np.zeros(2, "f4"),
    "running_var": np.ones(2, "f4"),
    "num_batches_tracked": np.array(0, "i8"),
    "transposed": np.array([[0, 3], [1, 4], [2, 5]], "f4"),
    "slice": np.array([1, 4, 7], "i4"),
    "shared": np.array([4, 5, 6, 7], "i4"),
    "bfloat16": np.array([1.5, -0.15625], "f4"),
    "parameter": np.array(2.5, "f8"),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pth"


def assert_same_arrays(read, expected):
    assert list(read) == list(expected)
    for name, array in read.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("golden", [GOLDEN_ZIP, GOLDEN_LEGACY], ids=["zip", "legacy"])
def test_files_of_pytorch_itself_are_read(path, golden):
    path.write_bytes(zlib.decompress(base64.b85decode(golden)))
    assert is_pytorch_file(path)
    assert_same_arrays(read_state_dict(path), GOLDEN_TENSORS)


@BOTH_FORMATS
@pytest.mark.parametrize("dtype", STORAGE_TYPES)
def test_every_type_keeps_its_numbers(path, legacy, dtype):
    random = np.random.default_rng(0)
    state = {
        f"{i}.weight": np.asarray(random.integers(0, 100, shape)).astype(dtype)
        for i, shape in enumerate([(), (3,), (2, 0), (4, 3, 2)])
    }
    write_checkpoint(path, OrderedDict(state), legacy)
    assert_same_arrays(read_state_dict(path), state)


@BOTH_FORMATS
def test_bfloat16_becomes_the_same_number_in_float32(path, legacy):
    numbers = np.array([0, 1, -2.5, 3e38, 1e-38, np.inf], "f4")
    upper_halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    storage = Storage(upper_halves, "BFloat16Storage")
    write_checkpoint(path, {"x": Tensor(storage, 0, (6,), (1,))}, legacy)
    expected = np.array([struct.unpack("<f", b"\0\0" + half.tobytes())[0] for half in upper_halves], "f4")
    assert_same_arrays(read_state_dict(path), {"x": expected})


def test_big_endian_storages_are_swapped(path):
    state = {"a": np.arange(5, dtype="f4"), "b": np.arange(5, dtype="i8") * 1000}
    write_checkpoint(path, state, byte_order="big")
    assert_same_arrays(read_state_dict(path), state)


def test_a_bool_of_any_other_bit_pattern_is_true(path):
    write_checkpoint(path, {"x": Tensor(Storage(np.array([0, 1, 2, 255], "u1"), "BoolStorage"), 0, (4,), (1,))})
    assert_same_arrays(read_state_dict(path), {"x": np.array([False, True, True, True])})


@BOTH_FORMATS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_views_give_what_indexing_gives(tmp_path_factory, legacy, data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(sizes))))
    whole = np.arange(np.prod(sizes), dtype="f4").reshape(sizes)
    steps = [(data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, 3))) for n in sizes]
    view = whole[tuple(slice(start, None, step) for start, step in steps)].transpose(order)
    offset = (view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // 4
    storage = Storage(whole.ravel())
    state = {
        "view": Tensor(storage, offset, view.shape, tuple(step // 4 for step in view.strides)),
        "whole": Tensor(storage, 0, whole.shape, tuple(step // 4 for step in whole.strides), is_parameter=True),
    }
    path = tmp_path_factory.getbasetemp() / "views.pth"
    write_checkpoint(path, state, legacy)
    assert_same_arrays(read_state_dict(path), {"view": view, "whole": whole})


def test_an_expanded_tensor_is_written_out(path):
    write_checkpoint(path, {"x": Tensor(Storage(np.array([1, 2], "f4")), 0, (3, 2), (0, 1))})
    assert_same_arrays(read_state_dict(path), {"x": np.array([[1, 2]] * 3, "f4")})


def test_tensors_with_a_shared_storage_are_independent_copies(path):
    storage = Storage(np.arange(4, dtype="f4"))
    write_checkpoint(path, {name: Tensor(storage, 0, (4,), (1,)) for name in "ab"})
    read = read_state_dict(path)
    read["a"][:] = 9
    np.testing.assert_array_equal(read["b"], np.arange(4))


@BOTH_FORMATS
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_checkpoint_of_a_training_run_is_unwrapped(path, legacy, wrapper):
    weight = np.ones((2, 3), "f4")
    optimizer = {"state": {0: {"momentum_buffer": weight * 5}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    checkpoint = {
        "epoch": 300,
        wrapper: OrderedDict({"module.vgg.0.weight": weight, "module.vgg.0.bias": weight[0]}),
        "optimizer": optimizer,
        "best": (0.5, None, True),
        "size": Call("torch", "Size", ((320, 320),)),
    }
    write_checkpoint(path, checkpoint, legacy)
    assert_same_arrays(read_state_dict(path), {"vgg.0.weight": weight, "vgg.0.bias": weight[0]})


def test_the_prefix_of_data_parallel_stays_where_not_all_names_have_it(path):
    state = {"module.weight": np.ones(1, "f4"), "weight": np.ones(1, "f4")}
    write_checkpoint(path, state)
    assert list(read_state_dict(path)) == list(state)


def test_an_ordered_dict_of_python_2_is_a_list_of_pairs(path):
    pairs = [["a.weight", np.ones((2, 2), "f4")], ["a.bias", np.zeros(2, "f4")]]
    write_checkpoint(path, Call("collections", "OrderedDict", (pairs,)), legacy=True)
    assert_same_arrays(read_state_dict(path), dict(pairs))


def test_the_rebuild_function_of_before_version_0_4_is_known(path):
    write_checkpoint(path, {"x": np.arange(3, dtype="f4")}, legacy=True)
    path.write_bytes(path.read_bytes().replace(b"_rebuild_tensor_v2", b"_rebuild_tensor"))
    np.testing.assert_array_equal(read_state_dict(path)["x"], [0, 1, 2])


class Evil:
    """What a pickle may do to those who unpickle it: calls os.mkdir on the path it was made for."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def write_zip(path, pickle_bytes, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        for i, content in enumerate(storages):
            archive.writestr(f"archive/data/{i}", content)


@BOTH_FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_is_refused_by_name_and_not_made(tmp_path, path, legacy, protocol):
    victim = tmp_path / "made"
    code = pickle.dumps({"state_dict": {}, "evil": Evil(victim)}, protocol)
    if legacy:
        path.write_bytes(LEGACY_START + pickle.dumps({}, 2) + code + pickle.dumps([], 2))
    else:
        write_zip(path, code)
    with pytest.raises(WeightFileError, match=r"net\.pth.*(posix|nt)\.mkdir"):
        read_state_dict(path)
    assert not victim.exists()
    pickle.loads(code)  # the file was indeed a dangerous one
    assert victim.exists()


@BOTH_FORMATS
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("builtins", "eval"),
        ("os", "system"),
    ],
)
def test_what_no_state_dict_needs_is_refused_by_name(path, legacy, module, name):
    write_checkpoint(path, {"x": np.ones(1, "f4"), "y": Call(module, name, ("1",))}, legacy)
    with pytest.raises(WeightFileError, match=rf"'{module}\.{name}'"):
        read_state_dict(path)


@BOTH_FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 3), (4, 1)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (5, (2,), (-1,)),
        (0, (2, 3), (1,)),
        (0, (4, 4), (1, 1)),
        (0, (2**40,), (0,)),
        (0, (2**62, 2**62), (0, 0)),
        (2**62, (1,), (1,)),
        (2**64, (1,), (1,)),
        (0, (2,), (2**62,)),
        (0, (1,) * 40, (1,) * 40),
        (0, (2.0,), (1,)),
        (0.5, (2,), (1,)),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(path, legacy, offset, size, stride):
    write_checkpoint(path, {"conv.weight": Tensor(Storage(np.ones(6, "f4")), offset, size, stride)}, legacy)
    with pytest.raises(WeightFileError, match=r"storage|impossible arguments|tensors claim"):
        read_state_dict(path)


@BOTH_FORMATS
@pytest.mark.parametrize("declared_size", [5, 7, 2**40, 2**62, 2**70, -1])
def test_a_storage_of_another_size_than_declared_is_refused(path, legacy, declared_size):
    storage = Storage(np.ones(6, "f4"), declared_size=declared_size)
    write_checkpoint(path, {"x": Tensor(storage, 0, (5,), (1,))}, legacy)
    with pytest.raises(WeightFileError, match="storage"):
        read_state_dict(path)


def test_a_missing_storage_is_refused(path):
    write_checkpoint(path, {"x": np.ones(3, "f4")})
    content = zipfile.ZipFile(path).read("archive/data.pkl")
    write_zip(path, content)
    with pytest.raises(WeightFileError, match="archive/data/0"):
        read_state_dict(path)


def test_many_large_views_of_one_storage_are_refused_before_they_are_copied(path):
    storage = Storage(np.zeros(1_000_000, "f4"))
    write_checkpoint(path, {f"x{i}": Tensor(storage, 0, (1_000_000,), (1,)) for i in range(1000)})
    started = time.process_time()
    with pytest.raises(WeightFileError, match="4000000000 bytes"):
        read_state_dict(path)
    assert time.process_time() - started < 2


def test_a_zip_bomb_is_refused(path):
    write_checkpoint(path, {"x": np.zeros(1_000_000, "f4")})
    members = {info.filename: zipfile.ZipFile(path).read(info) for info in zipfile.ZipFile(path).infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(WeightFileError, match="compressed"):
        read_state_dict(path)


NESTED = (
    b")" + b"q\x00h\x00\x86" * 100
)  # a tuple of twice a tuple of twice a ...: whoever hashes or prints it takes for ever
# OrderedDict([(1, None)] * 300_000), and that 100_000 times.
CONVERTED_OFTEN = b"ccollections\nOrderedDict\nq\x00](K\x01N\x86q\x01" + b"h\x01" * 300_000
CONVERTED_OFTEN += b"e\x85q\x02" + b"Rh\x00h\x02" * 100_000 + b"R."


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"}" + NESTED + b"Ns.", "a tuple as a key"),
        (b"ccollections\nOrderedDict\n]((" + NESTED + b"Nte\x85R.", "a tuple as a key"),
        (NESTED + b".", "holds a tuple"),
        (b"ctorch\nSize\n" + NESTED + b"R.", "impossible arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n" + NESTED + b"R.", "impossible arguments"),
        (CONVERTED_OFTEN, "no tensors"),
        (b"ctorch\nFloatStorage\n)R.", "torch.FloatStorage"),
        (NESTED + b"Q.", "storage"),
        (b"](" * 100_000 + b"e" * 100_000 + b".", "holds a list"),
        (b"N" * 1_100_000 + b".", "operations"),
        (b"Nr\xff\xff\xff\xff.", "holds a none"),  # makes pickle.Unpickler allocate 64 GiB
        (b"\x8d" + b"\xff" * 7 + b"\x7f" + b"x.", "cannot be read"),  # a string of 2**63 bytes
        (b"}(X\x01\x00\x00\x00a.", "cannot be read"),
        (b"h\x05.", "cannot be read"),
        (b"0.", "cannot be read"),
        (b".", "cannot be read"),
        (b"t.", "cannot be read"),
        (b"", "cannot be read"),
        (b"}", "truncated|exhausted"),
        (b"(dp0\n.", "DICT"),
        (b"(S'x'\nios\nsystem\n.", "STRING"),
        (b"ctorch\nSize\n}b.", "a _Global where a dict belongs"),
        (b"}(U\x01aU\x01bu.", "no tensors; its entries are 'a'"),
        (b"}.", "entries are none"),
    ],
)
def test_a_hostile_pickle_is_refused_at_once(path, code, message):
    started = time.process_time()
    for content in (b"\x80\x02" + code, code):
        write_zip(path, content)
        with pytest.raises(WeightFileError, match=message):
            read_state_dict(path)
        path.write_bytes(LEGACY_START + b"}." + content)
        with pytest.raises(WeightFileError):
            read_state_dict(path)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither"),
        (b"\x89HDF\r\n\x1a\n", "neither"),
        (b"PK\x03\x04", "cannot be read"),
        (pickle.dumps({"x": 1}, 2), "not one of torch.save"),
        (LEGACY_START[:-3] + b"\xea\x03.", "not of version 1001"),
    ],
)
def test_another_file_is_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=message):
        read_state_dict(path)


def test_another_zip_archive_is_refused(path):
    with path.open("wb") as file:
        np.savez(file, x=np.ones(3))
    assert not is_pytorch_file(path)
    with pytest.raises(WeightFileError, match=r"one data\.pkl, this one has 0"):
        read_state_dict(path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(WeightFileError, match=r"cannot be read|not a regular file"):
            read_state_dict(other)


def mixed_state():
    random = np.random.default_rng(2)
    storage = Storage(random.normal(size=24).astype("f4"))
    return OrderedDict(
        weight=random.normal(size=(4, 3, 3, 3)).astype("f4"),
        bias=tensor(random.normal(size=4)),
        view=Tensor(storage, 2, (3, 2), (1, 6), is_parameter=True),
        steps=np.array(7),
        mask=np.array([True, False]),
    )


@BOTH_FORMATS
def test_a_truncated_file_is_refused(path, legacy):
    write_checkpoint(path, mixed_state(), legacy)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightFileError, match=r"net\.pth"):
            read_state_dict(path)


@BOTH_FORMATS
def test_flipped_bits_give_a_result_or_the_error(path, legacy):
    write_checkpoint(path, mixed_state(), legacy)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(3)
    for _ in range(500):
        broken = content.copy()
        where = random.integers(0, len(broken), random.integers(1, 4))
        broken[where] ^= random.integers(1, 256, len(where)).astype(np.uint8)
        path.write_bytes(broken.tobytes())
        is_pytorch_file(path)
        try:
            read_state_dict(path)
        except WeightFileError as error:
            assert str(path) in str(error)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_pickle_with_random_operations_gives_a_result_or_the_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.pth"
    write_checkpoint(path, mixed_state())
    with zipfile.ZipFile(path) as archive:
        code = archive.read("archive/data.pkl")
        storages = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    start = data.draw(st.integers(0, len(code)))
    end = data.draw(st.integers(start, min(len(code), start + 20)))
    operations = st.sampled_from(
        [bytes([i]) for i in b"(.0123FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x85\x86\x87\x88\x8a\x93\x94"]
    )
    inserted = b"".join(data.draw(st.lists(operations | st.binary(max_size=3), max_size=8)))
    write_zip(path, code[:start] + inserted + code[end:], storages)
    try:
        read_state_dict(path)
    except WeightFileError as error:
        assert str(path) in str(error)
