//! Work recorded once and replayed: what a replay reads and writes, whose memory it uses, and what cannot be recorded, by the backend and by the
//! driver beneath it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};
use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_tensor::{DType, Device, Result, Tensor};

use crate::device;
use crate::launches::SCALE;

type Work<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

fn cuda(device: &Device) -> &Cuda {
    device.downcast::<Cuda>().expect("CUDA")
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().expect("numbers")
}

/// x grows by 1, and y becomes 10 x by way of temporary tensors.
fn work(x: &Tensor, y: &Tensor) -> Result<()> {
    let count = x.len() as u32;
    cuda(x.device()).kernel(&SCALE, "grow").write(x).value(count).threads(64).launch()?;
    let twice = Tensor::empty(x.shape(), DType::F32, x.device())?;
    cuda(x.device()).kernel(&SCALE, "scale").write(&twice).read(x).value(2f32).value(count).threads(64).launch()?;
    let four = twice.add(&twice)?;
    drop(twice);
    // In the place of `twice`.
    y.copy_(&four.add(&four)?.add(x)?.add(x)?)
}

#[test]
fn graphs_replay_with_what_memory_holds_then() {
    let device = device();
    let x = Tensor::from_slice(&[1f32, 2.0, 3.0], &[3], &device).expect("memory");
    let y = Tensor::zeros(&[3], DType::F32, &device).expect("memory");
    let memory = device.rehearse(|| work(&x, &y)).expect("a first run").expect("a device that records");
    assert_eq!((memory, numbers(&x), numbers(&y)), (1024, vec![2.0, 3.0, 4.0], vec![20.0, 30.0, 40.0]));
    let held = cuda(&device).memory_held();
    let graph = device.capture(memory, || work(&x, &y)).expect("a graph");
    assert_eq!(numbers(&x), [2.0, 3.0, 4.0], "recording runs nothing");
    assert_eq!((graph.operations(), cuda(&device).memory_held()), (7, held + memory));
    for _ in 0..3 {
        graph.replay().expect("a replay");
        // What others do in between is done in other memory.
        let other = Tensor::full(&[500], f64::NAN, DType::F32, &device).expect("memory");
        assert!(numbers(&other.add(&other).expect("a sum")).iter().all(|x| x.is_nan()));
    }
    assert_eq!(numbers(&y), [50.0, 60.0, 70.0]);
    x.write_from(&[0f32; 3]).expect("an upload");
    graph.replay().expect("a replay");
    assert_eq!(numbers(&y), [10.0; 3]);
    drop(graph);
    assert_eq!(cuda(&device).memory_held(), held);
}

#[test]
fn a_graph_keeps_the_memory_that_it_names() {
    let device = device();
    let y = Tensor::zeros(&[3], DType::F32, &device).expect("memory");
    let held = cuda(&device).memory_held();
    let x = Tensor::zeros(&[3], DType::F32, &device).expect("memory");
    let memory = device.rehearse(|| work(&x, &y)).expect("a first run").expect("a device that records");
    // A tensor that the recording does not name goes while it is made.
    let mut other = Some(Tensor::zeros(&[1000], DType::F32, &device).expect("memory"));
    let record = || {
        other = None;
        work(&x, &y)
    };
    let graph = device.capture(memory, record).expect("a graph");
    assert!(other.is_none());
    drop(x);
    assert_eq!(cuda(&device).memory_held(), held + 12 + memory);
    let garbage = Tensor::full(&[3], 1e9, DType::F32, &device).expect("memory");
    graph.replay().expect("a replay");
    assert_eq!((numbers(&y), numbers(&garbage)), (vec![20.0; 3], vec![1e9; 3]));
    drop((graph, garbage));
    assert_eq!(cuda(&device).memory_held(), held);
    device.synchronize().expect("the device still works");
}

#[test]
fn what_cannot_be_recorded_is_told_and_the_device_works_on() {
    static NEVER: KernelSource = KernelSource {
        name: "never",
        text: "#include \"prelude.cuh\"\nKERNEL(never, 32, f32 *x) {\n    x[threadIdx.x] = 1;\n}\n",
        headers: &[],
    };
    let device = device();
    let x = Tensor::zeros(&[3], DType::F32, &device).expect("memory");
    let y = Tensor::zeros(&[3], DType::F32, &device).expect("memory");
    let memory = device.rehearse(|| work(&x, &y)).expect("a first run").expect("a device that records");
    let graph = device.capture(memory, || work(&x, &y)).expect("a graph");
    let held = cuda(&device).memory_held();
    let mut kept = Vec::new();
    let mut bodies: Vec<(&str, Work)> = vec![
        ("waiting for the device cannot be recorded", Box::new(|| device.synchronize())),
        ("copying 12 bytes to the host cannot be recorded", Box::new(|| x.to_vec::<f32>().map(drop))),
        ("copying 12 bytes to the device cannot be recorded", Box::new(|| x.write_from(&[1f32; 3]))),
        ("the replay of a graph cannot be recorded", Box::new(|| graph.replay())),
        ("a kernel is loaded", Box::new(|| cuda(&device).kernel(&NEVER, "never").write(&x).threads(32).launch())),
        ("one at a time", Box::new(|| device.rehearse(|| work(&x, &y)).map(drop))),
        ("waiting for the device cannot be recorded", Box::new(|| device.capture(memory, || work(&x, &y)).map(drop))),
        ("an allocation of 3.9 KiB does not fit", Box::new(|| Tensor::zeros(&[1000], DType::F32, &device).map(drop))),
        ("1 tensors that were made while", Box::new(|| x.add(&y).map(|made| kept.push(made)))),
        ("do not broadcast", Box::new(|| x.add(&x.narrow(0, 0, 2)?).map(drop))),
        // Swallowed by the work itself, it spoils the recording all the same.
        (
            "recording a graph failed",
            Box::new(|| {
                let _ = cuda(&device).kernel(&NEVER, "never").write(&x).threads(32).launch();
                Ok(())
            }),
        ),
        (
            "another thread is recording",
            Box::new(|| std::thread::scope(|threads| threads.spawn(|| x.fill_(1.0)).join().expect("no panic"))),
        ),
    ];
    for (part, body) in &mut bodies {
        let message = device.capture(memory, body).err().unwrap_or_else(|| panic!("{part}")).to_string();
        assert!(message.contains(*part), "`{part}` is not in: {message}");
        device.synchronize().expect("the stream still works");
    }
    drop(bodies);
    // What outlived its recording is memory all the same, if of no use.
    assert_eq!(cuda(&device).memory_held(), held + memory);
    kept.clear();
    let panics = catch_unwind(AssertUnwindSafe(|| device.capture(memory, || -> Result<()> { panic!("as planned") })));
    assert!(panics.is_err());
    let panics = catch_unwind(AssertUnwindSafe(|| device.rehearse(|| -> Result<()> { panic!("as planned") })));
    assert!(panics.is_err());
    assert_eq!(cuda(&device).memory_held(), held);
    let again = device.capture(memory, || work(&x, &y)).expect("a graph");
    again.replay().expect("a replay");
    assert_eq!(numbers(&y), [20.0; 3]);
}

/// Asks the emulated driver itself, without the backend before it: each of these is refused while a stream is captured, and the capture is then lost.
#[test]
fn the_emulated_driver_refuses_what_cannot_be_captured() {
    let opened = device();
    let known = Tensor::zeros(&[3], DType::F32, &opened).expect("memory");
    let address = cuda(&opened).address(&known).expect("an address");
    // The stream below does not wait for that of the device.
    opened.synchronize().expect("zeros");
    let mut pageable = [0f32; 3];
    let host = pageable.as_mut_ptr().cast();
    let mut stream = null_mut();
    let (mut event, mut pinned) = (null_mut(), null_mut());
    // SAFETY: pointers are valid; all is given back below.
    let made = unsafe {
        [
            sys::cuStreamCreate(&mut stream, 0),
            sys::cuEventCreate(&mut event, 0),
            sys::cuEventRecord(event, stream),
            sys::cuMemAllocHost_v2(&mut pinned, 12),
        ]
    };
    assert_eq!(made, [CUresult::CUDA_SUCCESS; 4]);
    let (mut out, mut more) = (0, null_mut());
    let calls = [
        "a wait",
        "an allocation",
        "a free",
        "an upload",
        "a download",
        "pinning",
        "a question",
        "a wait for an event",
        "a record",
    ];
    let mut call = |what: &str| {
        // SAFETY: handles are alive, addresses name memory as long as the copies.
        unsafe {
            match what {
                "a wait" => sys::cuStreamSynchronize(stream),
                "an allocation" => sys::cuMemAllocAsync(&mut out, 64, stream),
                "a free" => sys::cuMemFreeAsync(address, stream),
                "an upload" => sys::cuMemcpyHtoDAsync_v2(address, host, 12, stream),
                "a download" => sys::cuMemcpyDtoHAsync_v2(host, address, 12, stream),
                "pinning" => sys::cuMemAllocHost_v2(&mut more, 12),
                "a question" => sys::cuEventQuery(event),
                "a wait for an event" => sys::cuEventSynchronize(event),
                _ => sys::cuEventRecord(event, stream),
            }
        }
    };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    for what in calls {
        let mut graph = null_mut();
        // SAFETY: the stream is alive, the pointer valid.
        assert_eq!(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }, CUresult::CUDA_SUCCESS);
        assert_eq!(call(what), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "{what}");
        // SAFETY: as above; what comes after a refusal is lost too.
        let (after, ended) =
            unsafe { (sys::cuMemsetD8Async(address, 0, 12, stream), sys::cuStreamEndCapture(stream, &mut graph)) };
        let lost = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        assert_eq!((after, ended, graph.is_null()), (lost, lost, true), "{what}");
    }
    // From pinned memory a copy can be captured, and reads what is there at the replay.
    let (mut graph, mut executable) = (null_mut(), null_mut());
    // SAFETY: as above; pinned memory holds three numbers.
    let results = unsafe {
        [
            sys::cuStreamBeginCapture_v2(stream, mode),
            sys::cuMemcpyHtoDAsync_v2(address, pinned, 12, stream),
            sys::cuStreamEndCapture(stream, &mut graph),
            sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0),
        ]
    };
    assert_eq!(results, [CUresult::CUDA_SUCCESS; 4]);
    // SAFETY: as above.
    let results = unsafe {
        std::slice::from_raw_parts_mut(pinned.cast::<f32>(), 3).fill(5.0);
        [
            sys::cuGraphLaunch(executable, stream),
            sys::cuStreamSynchronize(stream),
            sys::cuGraphExecDestroy(executable),
            sys::cuGraphDestroy(graph),
            sys::cuMemFreeHost(pinned),
            sys::cuEventDestroy_v2(event),
            sys::cuStreamDestroy_v2(stream),
        ]
    };
    assert_eq!(results, [CUresult::CUDA_SUCCESS; 7]);
    assert_eq!(numbers(&known), [5.0; 3]);
}
